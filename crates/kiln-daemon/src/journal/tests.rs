use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kiln_model::api::RolloutResult;
use kiln_model::{Actor, Digest, Generation, ReleaseNumber, ServiceKey};
use kiln_plan::{Event, Notice};
use serde_json::{Value, json};

use super::read::Keep;
use super::*;

/// A journal of format 1 with 45 entries of three services, made by the last kiln that wrote that format.
const V1: &[u8] = include_bytes!("../../tests/journals/v1.db");

fn v1(folder: &Path) -> PathBuf {
    let path = folder.join("journal.db");
    std::fs::write(&path, V1).unwrap();
    path
}

fn key(text: &str) -> ServiceKey {
    text.to_owned().try_into().unwrap()
}

/// A timer of the service, after which its state is `state`.
fn timer(service: &str, at: u64, state: &[u8]) -> Entry {
    Entry {
        at: Timestamp(at),
        actor: None,
        subject: Subject::Service(key(service)),
        fact: Fact::Service(StepRecord {
            event: Event::Timer,
            actions: Vec::new(),
            notices: Vec::new(),
            state: Digest::of(state),
        }),
    }
}

/// A fact of a newer kiln.
fn ban(at: u64) -> Entry {
    Entry {
        at: Timestamp(at),
        actor: Some(Actor::User("jan".to_owned())),
        subject: Subject::Image(Digest::of(b"image")),
        fact: Fact::Unknown(json!({"kind": "ban", "reason": "CVE-1"})),
    }
}

fn state_of(service: &str) -> Vec<u8> {
    Service::new(key(service), "shop".parse().unwrap())
        .write_state()
        .unwrap()
}

fn bodies(path: &Path) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let db = Connection::open(path).unwrap();
    let mut select = db
        .prepare("SELECT state, body, hash FROM entry ORDER BY state")
        .unwrap();
    let rows = select
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .unwrap();
    rows.map(Result::unwrap).collect()
}

#[test]
fn a_journal_of_format_1_is_migrated_and_its_chain_stays_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = v1(folder.path());
    let before = bodies(&path);
    let images = images_in_use(folder.path()).unwrap();
    assert!(!images.is_empty());

    let (mut journal, recovered) = Journal::open(&path).unwrap();
    assert_eq!(bodies(&path), before, "bodies and hashes byte for byte");
    assert_eq!(images_in_use(folder.path()).unwrap(), images);
    assert_eq!(
        (journal.last(), recovered.table),
        (StateId(45), Generation(42))
    );
    assert_eq!(recovered.changed, Vec::<String>::new());
    assert_eq!(
        recovered
            .services
            .keys()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["dev/app", "staging/web", "staging/worker"]
    );
    let app = &recovered.services[&key("dev/app")];
    assert_eq!(app.current(), Some(ReleaseNumber(1)));
    let reader = journal.reader();
    assert_eq!(reader.verify().unwrap(), StateId(45));

    // What the old entries say is read as before.
    let entries = reader
        .after::<StepRecord>(StateId(0), &Filter::default(), 100)
        .unwrap();
    assert_eq!(entries.len(), 45);
    assert_eq!(entries[0].entry.actor, Some(Actor::Uid(0)));
    assert_eq!(entries[0].entry.subject, Subject::Service(key("dev/app")));
    let mut results = Vec::new();
    for Recorded { state, entry } in &entries {
        let Fact::Service(step) = &entry.fact else {
            panic!("{state}: {:?}", entry.fact);
        };
        results.extend(step.notices.iter().filter_map(|notice| match notice {
            Notice::RolloutEnded { end } => Some(end.result),
            _ => None,
        }));
    }
    assert!(results.contains(&RolloutResult::RolledBack));

    // New entries go on behind the old ones, also after a restart.
    let state = app.write_state().unwrap();
    journal
        .append(&timer("dev/app", recovered.at.0, &state), &state, true)
        .unwrap();
    drop(journal);
    let (journal, recovered) = Journal::open(&path).unwrap();
    assert_eq!(
        (journal.last(), recovered.table),
        (StateId(46), Generation(46))
    );
    assert_eq!(journal.reader().verify().unwrap(), StateId(46));
}

/// Each was made by the last kiln that wrote its format: three services in two environments, rollouts that were done, one that
/// was turned back, and a rollback.
#[test]
fn journals_of_every_format_are_opened_and_gone_on_with() {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journals");
    let mut formats = Vec::new();
    for kept in std::fs::read_dir(kept).unwrap() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal.db");
        std::fs::copy(kept.unwrap().path(), &path).unwrap();
        formats.push(schema::format_of(&Connection::open(&path).unwrap()).unwrap());
        let (mut journal, recovered) = Journal::open(&path).unwrap();
        assert_eq!(recovered.changed, Vec::<String>::new());
        let app = &recovered.services[&key("dev/app")];
        assert_eq!(app.current(), Some(ReleaseNumber(1)));
        assert!(!images_in_use(folder.path()).unwrap().is_empty());
        let reader = journal.reader();
        let last = journal.last();
        assert_eq!(reader.verify().unwrap(), last);
        let told: Vec<String> = reader
            .newest::<StepRecord>(&Filter::default(), 100)
            .unwrap()
            .into_iter()
            .flat_map(crate::view::events)
            .map(|event| event.text)
            .collect();
        for text in ["apply of app:three", "rollback", "apply of app:web"] {
            assert!(told.iter().any(|told| told == text), "{text}: {told:#?}");
        }
        let state = app.write_state().unwrap();
        let entry = timer("dev/app", recovered.at.0, &state);
        journal.append(&entry, &state, true).unwrap();
        drop(journal);
        let (journal, recovered) = Journal::open(&path).unwrap();
        assert_eq!(
            (journal.last(), recovered.table),
            (last.next(), Generation(last.next().0))
        );
        assert_eq!(journal.reader().verify().unwrap(), last.next());
    }
    formats.sort_unstable();
    assert_eq!(formats, (1..=schema::FORMAT).collect::<Vec<_>>());
}

#[test]
fn a_migration_that_fails_leaves_the_journal_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = v1(folder.path());
    let before = bodies(&path);
    Connection::open(&path)
        .unwrap()
        .execute_batch("CREATE TABLE meta (in_the_way INTEGER)")
        .unwrap();
    assert!(matches!(
        Journal::open(&path),
        Err(JournalError::Migrate { from: 1, .. })
    ));
    assert_eq!(bodies(&path), before);
    assert_eq!(schema::format_of(&Connection::open(&path).unwrap()), Ok(1));
}

#[test]
fn a_journal_of_a_newer_format_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    drop(Journal::open(&path).unwrap());
    let db = Connection::open(&path).unwrap();
    db.pragma_update(None, "user_version", schema::FORMAT + 1)
        .unwrap();
    let error = Journal::open(&path).err().unwrap();
    assert!(
        error.to_string().contains("use the kiln that wrote it"),
        "{error}"
    );
    assert!(matches!(
        images_in_use(folder.path()),
        Err(JournalError::Version { .. })
    ));
    db.pragma_update(None, "user_version", schema::FORMAT)
        .unwrap();
    let state = state_of("dev/api");
    db.execute(
        "INSERT INTO service VALUES ('dev/api', ?1, ?2)",
        params![STATE_FORMAT + 1, state],
    )
    .unwrap();
    assert!(matches!(
        Journal::open(&path),
        Err(JournalError::State { .. })
    ));
}

#[test]
fn a_changed_byte_is_found_wherever_it_is() {
    let changes = [
        "UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'app:one', 'app:two') AS BLOB) WHERE state = 1",
        "UPDATE entry SET hash = zeroblob(32) WHERE state = 17",
        "DELETE FROM entry WHERE state = 20",
        "DELETE FROM entry WHERE state = 1",
        "UPDATE entry SET subject = 'service:dev/other' WHERE state = 9",
        "UPDATE entry SET at = at + 1 WHERE state = 9",
        "UPDATE service SET state = CAST(replace(CAST(state AS TEXT), 'app:one', 'app:two') AS BLOB)",
    ];
    for change in changes {
        let folder = tempfile::tempdir().unwrap();
        let path = v1(folder.path());
        let (journal, _) = Journal::open(&path).unwrap();
        let db = Connection::open(&path).unwrap();
        db.execute(change, []).unwrap();
        let error = journal.reader().verify().unwrap_err();
        assert!(
            error.to_string().contains("was changed"),
            "{change}: {error}"
        );
        drop(journal);
        if change.contains("UPDATE service") {
            let (_, recovered) = Journal::open(&path).unwrap();
            assert_eq!(recovered.changed, ["dev/app"]);
        }
    }
}

#[test]
fn entries_of_several_subjects_are_written_together_or_not_at_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let (mut journal, _) = Journal::open(&path).unwrap();
    let state = state_of("dev/api");
    let step = timer("dev/api", 5, &state);
    let ban = ban(5);
    let both = [
        Write {
            entry: &step,
            state: Some(&state),
            routes: true,
        },
        Write {
            entry: &ban,
            state: None,
            routes: false,
        },
    ];
    let written = journal.append_all(&both).unwrap();
    assert_eq!(
        written,
        Written {
            state: StateId(2),
            table: Generation(1)
        }
    );

    // The disk is full: the database may not grow.
    let pages: i64 = journal
        .db
        .query_row("PRAGMA page_count", [], |row| row.get(0))
        .unwrap();
    journal
        .db
        .pragma_update(None, "max_page_count", pages)
        .unwrap();
    let large = vec![b'x'; 1 << 20];
    let grows = timer("dev/api", 6, &large);
    let writes = [
        Write {
            entry: &ban,
            state: None,
            routes: true,
        },
        Write {
            entry: &grows,
            state: Some(&large),
            routes: true,
        },
    ];
    assert!(matches!(
        journal.append_all(&writes),
        Err(JournalError::Write(_))
    ));
    assert_eq!(journal.last(), StateId(2));
    let reader = journal.reader();
    assert_eq!(
        reader
            .after::<Value>(StateId(0), &Filter::default(), 10)
            .unwrap()
            .len(),
        2
    );
    assert_eq!(*reader.written().borrow(), StateId(2));

    // There is room again, and nothing of it is in the way.
    journal
        .db
        .pragma_update(None, "max_page_count", 1 << 30)
        .unwrap();
    let written = journal
        .append(&timer("dev/api", 7, &state), &state, false)
        .unwrap();
    assert_eq!(
        written,
        Written {
            state: StateId(3),
            table: Generation(1)
        }
    );
    assert_eq!(reader.verify().unwrap(), StateId(3));
    drop(journal);
    let (_, recovered) = Journal::open(&path).unwrap();
    assert_eq!(
        (recovered.at, recovered.table),
        (Timestamp(7), Generation(1))
    );
}

#[test]
fn entries_are_found_by_what_they_are_about() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(&folder.path().join("journal.db")).unwrap();
    for (at, service) in [
        (1, "dev/api"),
        (2, "dev/web"),
        (3, "dev2/api"),
        (4, "dev/api"),
    ] {
        let state = state_of(service);
        journal
            .append(&timer(service, at, &state), &state, false)
            .unwrap();
    }
    for entry in [
        ban(5),
        Entry {
            subject: Subject::Environment("dev".parse().unwrap()),
            ..ban(6)
        },
    ] {
        journal
            .append_all(&[Write {
                entry: &entry,
                state: None,
                routes: false,
            }])
            .unwrap();
    }
    let reader = journal.reader();
    let filter = |environment: Option<&str>, service: Option<&str>, kind: Option<&str>| Filter {
        environment: environment.map(|name| name.parse().unwrap()),
        service: service.map(|name| name.parse().unwrap()),
        kind: kind.map(str::to_owned),
    };
    let numbers = |entries: Vec<Recorded<Value>>| -> Vec<u64> {
        entries.iter().map(|recorded| recorded.state.0).collect()
    };
    for (filter, all) in [
        (filter(None, None, None), vec![1, 2, 3, 4, 5, 6]),
        (filter(Some("dev"), None, None), vec![1, 2, 4, 6]),
        (filter(Some("dev"), Some("api"), None), vec![1, 4]),
        (filter(None, Some("api"), None), vec![1, 3, 4]),
        (filter(None, None, Some("ban")), vec![5, 6]),
        (filter(Some("dev"), None, Some("ban")), vec![6]),
        (filter(Some("none"), None, None), vec![]),
    ] {
        assert_eq!(
            numbers(reader.after(StateId(0), &filter, 10).unwrap()),
            all,
            "{filter:?}"
        );
        let mut newest = all.clone();
        newest.reverse();
        newest.truncate(2);
        assert_eq!(
            numbers(reader.newest(&filter, 2).unwrap()),
            newest,
            "{filter:?}"
        );
        let later: Vec<u64> = all
            .into_iter()
            .filter(|number| *number > 3)
            .take(1)
            .collect();
        assert_eq!(
            numbers(reader.after(StateId(3), &filter, 1).unwrap()),
            later,
            "{filter:?}"
        );
    }
}

#[test]
fn a_filtered_read_walks_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, _) = Journal::open(&folder.path().join("journal.db")).unwrap();
    for sql in [
        "SELECT state FROM entry WHERE subject = 'x' AND state > 1 ORDER BY state DESC LIMIT 5",
        "SELECT min(subject) FROM entry WHERE subject > 'x'",
        "SELECT state FROM entry WHERE kind = 'x' AND state > 1 ORDER BY state LIMIT 5",
    ] {
        let plan: String = journal
            .db
            .query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [], |row| row.get(3))
            .unwrap();
        assert!(
            plan.starts_with("SEARCH entry USING COVERING INDEX"),
            "{sql}: {plan}"
        );
    }
}

#[test]
fn readers_go_on_while_the_owner_writes() {
    let folder = tempfile::tempdir().unwrap();
    let (mut journal, _) = Journal::open(&folder.path().join("journal.db")).unwrap();
    let reader = journal.reader();
    let ended = AtomicBool::new(false);
    let reads = std::thread::scope(|scope| {
        let readers = (0..2).map(|_| {
            let reader = reader.clone();
            let ended = &ended;
            scope.spawn(move || {
                let (mut last, mut reads) = (StateId(0), 0);
                while !ended.load(Ordering::SeqCst) {
                    let verified = reader.verify().unwrap();
                    assert!(verified >= last, "{verified} after {last}");
                    last = verified;
                    reads += 1;
                }
                reads
            })
        });
        let readers: Vec<_> = readers.collect();
        let state = state_of("dev/api");
        for at in 0..300 {
            journal
                .append(&timer("dev/api", at, &state), &state, false)
                .unwrap();
        }
        ended.store(true, Ordering::SeqCst);
        readers
            .into_iter()
            .map(|reader| reader.join().unwrap())
            .sum::<u32>()
    });
    assert!(reads > 0);
    assert_eq!(reader.verify().unwrap(), StateId(300));
    assert_eq!(*reader.written().borrow(), StateId(300));
}

#[test]
fn old_entries_are_folded_and_the_chain_goes_on_from_the_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let path = v1(folder.path());
    let (mut journal, recovered) = Journal::open(&path).unwrap();
    let reader = journal.reader();
    let keep = Keep {
        entries: 20,
        age: Duration::MAX,
        least: 5,
        most: 10,
        always: 3,
    };
    assert_eq!(
        reader
            .foldable(Keep {
                entries: 45,
                ..keep
            })
            .unwrap(),
        None
    );
    // Ten at a time, until fewer than five are too many.
    let mut folded = Vec::new();
    while let Some(foldable) = reader.foldable(keep).unwrap() {
        folded.push(foldable.up_to.0);
        journal.fold(foldable, recovered.at).unwrap();
        upkeep::delete_folded(&path).unwrap();
        assert_eq!(reader.verify().unwrap(), journal.last());
    }
    assert_eq!(folded, [10, 20, 27]);
    let left = reader
        .after::<StepRecord>(StateId(0), &Filter::default(), 100)
        .unwrap();
    assert_eq!((left[0].state, left.len()), (StateId(28), 21));

    // By age: all but the last three are far older than the last.
    let state = recovered.services[&key("dev/app")].write_state().unwrap();
    let later = recovered.at.plus(Duration::from_secs(1000));
    journal
        .append(&timer("dev/app", later.0, &state), &state, false)
        .unwrap();
    let by_age = Keep {
        entries: 100,
        age: Duration::from_secs(500),
        most: 100,
        ..keep
    };
    let foldable = reader.foldable(by_age).unwrap().unwrap();
    assert_eq!(foldable.up_to, StateId(46));
    journal.fold(foldable, later).unwrap();
    upkeep::delete_folded(&path).unwrap();
    assert_eq!(reader.verify().unwrap(), StateId(50));
    drop(journal);

    // Everything about staging/web was folded; what its state has to be is in the snapshot.
    let (journal, recovered) = Journal::open(&path).unwrap();
    assert_eq!((journal.last(), recovered.services.len()), (StateId(50), 3));
    assert_eq!(recovered.changed, Vec::<String>::new());
    let db = Connection::open(&path).unwrap();
    db.execute("UPDATE service SET state = CAST(replace(CAST(state AS TEXT), 'app:web', 'app:wob') AS BLOB) WHERE key = 'staging/web'", []).unwrap();
    assert!(
        matches!(reader.verify(), Err(JournalError::StateChanged { service }) if service == "staging/web")
    );
}

#[test]
fn a_changed_entry_is_not_folded_away() {
    let folder = tempfile::tempdir().unwrap();
    let path = v1(folder.path());
    let (journal, _) = Journal::open(&path).unwrap();
    Connection::open(&path)
        .unwrap()
        .execute("UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'app:one', 'app:two') AS BLOB) WHERE state = 1", [])
        .unwrap();
    let keep = Keep {
        entries: 5,
        age: Duration::MAX,
        least: 5,
        most: 100,
        always: 0,
    };
    assert!(matches!(
        journal.reader().foldable(keep),
        Err(JournalError::Broken { state: StateId(1) })
    ));
}

#[test]
fn the_generation_goes_above_what_a_proxy_serves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal.db");
    let (mut journal, _) = Journal::open(&path).unwrap();
    assert_eq!(journal.epoch().unwrap(), 1);
    journal.raise_generation(Generation(715)).unwrap();
    journal.raise_generation(Generation(7)).unwrap();
    assert_eq!(journal.epoch().unwrap(), 2);
    let state = state_of("dev/api");
    let entry = timer("dev/api", 1, &state);
    let written = journal.append(&entry, &state, true).unwrap();
    assert_eq!(
        written,
        Written {
            state: StateId(1),
            table: Generation(716)
        }
    );
    drop(journal);
    let (_, recovered) = Journal::open(&path).unwrap();
    assert_eq!(recovered.table, Generation(716));
}

#[test]
fn states_of_the_first_format_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = v1(folder.path());
    let db = Connection::open(&path).unwrap();
    let states: BTreeMap<String, Vec<u8>> = {
        let mut select = db.prepare("SELECT key, state FROM service").unwrap();
        let rows = select
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        rows.map(Result::unwrap).collect()
    };
    let (_, recovered) = Journal::open(&path).unwrap();
    for (name, state) in states {
        let service = &recovered.services[&key(&name)];
        let text = String::from_utf8(state).unwrap();
        for (number, record) in service.releases() {
            assert!(text.contains(&record.origin.tag), "{name}@{number}");
        }
    }
}
