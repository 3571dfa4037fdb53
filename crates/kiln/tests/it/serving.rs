//! The whole loop through the command line, and bad input while something serves. Needs root and the archive.

use std::collections::BTreeSet;
use std::io::Write;

use serde_json::Value;

use crate::world::{DEFINITION, World, interrupt, text, until};

fn keys(value: &Value) -> Vec<&str> {
    value
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

/// As in scripts that read it: these names, and no others without a thought.
fn has(value: &Value, names: &[&str]) {
    let (found, wanted): (BTreeSet<_>, BTreeSet<_>) = (
        keys(value).into_iter().collect(),
        names.iter().copied().collect(),
    );
    assert_eq!(found, wanted, "{value}");
}

const OUTCOME: [&str; 11] = [
    "service",
    "environment",
    "from",
    "to",
    "result",
    "reason",
    "duration_ms",
    "requests",
    "phases",
    "warm",
    "url",
];

#[test]
fn from_a_commit_to_an_edit_and_back() {
    let world = World::new();
    let sha = world.commit();
    let baked = world.json(&["bake", "--json"]);
    has(&baked, &["images"]);
    has(&baked["images"][0], &["name", "tag", "digest", "steps"]);
    has(
        &baked["images"][0]["steps"][0],
        &["name", "cached", "duration_ms"],
    );
    assert_eq!(
        baked["images"][0]["tag"],
        format!("web:1.0.0-{}", &sha[..12])
    );

    let up = world.succeed(&["up", "--detach"]);
    assert!(
        up.contains(&format!("http://127.0.0.1:{}/", world.port)),
        "{up}"
    );
    assert_eq!(world.answer().as_deref(), Some("one\n"));
    let status = world.json(&["status", "--json"]);
    has(&status, &["services", "problems"]);
    assert_eq!(status["problems"], Value::Array(vec![]));
    let service = &status["services"][0];
    has(
        service,
        &[
            "name",
            "environment",
            "project",
            "url",
            "release",
            "instances",
            "rollout",
            "warm",
            "last_rollout",
        ],
    );
    has(&service["release"], &["number", "image", "commit", "tag"]);
    assert_eq!(service["release"]["number"], 1);
    assert_eq!(service["release"]["commit"], sha);
    assert_eq!(service["release"]["image"], baked["images"][0]["digest"]);
    assert_eq!(service["instances"].as_array().unwrap().len(), 2);
    for instance in service["instances"].as_array().unwrap() {
        has(
            instance,
            &["id", "release", "state", "address", "pid", "started_at"],
        );
        assert_eq!(instance["state"], "ready");
        assert!(instance["pid"].is_u64(), "{instance}");
    }

    world.fail(&["plan"], 0);
    world.write("app/index.html", "two\n");
    let second = world.commit();
    world.fail(&["plan"], 2);
    let applied = world.json(&["apply", "--json"]);
    has(&applied, &OUTCOME);
    has(&applied["requests"], &["served", "failed"]);
    assert_eq!(
        (&applied["from"], &applied["to"], &applied["result"]),
        (&1.into(), &2.into(), &"done".into())
    );
    assert_eq!(world.answer().as_deref(), Some("two\n"));
    let back = world.json(&["rollback", "web", "--json"]);
    has(&back, &OUTCOME);
    assert_eq!(
        (&back["from"], &back["to"], &back["result"]),
        (&2.into(), &1.into(), &"done".into())
    );
    assert_eq!(world.answer().as_deref(), Some("one\n"));

    let history = world.json(&["history", "web", "--json"]);
    let commits: Vec<&str> = history["releases"]
        .as_array()
        .unwrap()
        .iter()
        .map(|release| release["commit"].as_str().unwrap())
        .collect();
    assert_eq!(commits, [second.as_str(), sha.as_str()]);
    assert!(world.succeed(&["logs", "web"]).contains("response:200"));
    world.write("kiln.hcl", "project = ");
    assert!(world.fail(&["plan"], 1).contains("kiln.hcl:1:"));
    world.down();
}

#[test]
fn what_is_wrong_is_one_error_and_the_old_set_goes_on() {
    let world = World::new();
    world.succeed(&["up", "--detach"]);
    let serves = |text: &str| assert_eq!(world.answer().as_deref(), Some(text));
    for (from, to, code, told) in [
        (
            "replicas = 2",
            "replica = 2",
            1,
            "has no attribute `replica`",
        ),
        (
            "\"busybox\", \"httpd\"",
            "\"/no/such\", \"x\"",
            1,
            "/no/such",
        ),
        (
            "\"/ready\"",
            "\"/nowhere\"\n    timeout = \"1s\"",
            3,
            "/nowhere",
        ),
        (
            "replicas = 2",
            "replicas = 2\n  resources { memory = \"1MiB\" }",
            1,
            "4MiB",
        ),
    ] {
        let definition = DEFINITION.replacen(from, to, 1).replace(
            "  port     = 3000",
            "  progress_deadline = \"3s\"\n  env  = { CHANGED = \"yes\" }\n  port     = 3000",
        );
        world.write("kiln.hcl", &definition);
        let output = world.kiln(&["apply"]);
        let said = text(&output.stdout) + &text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{to}: {said}");
        assert!(said.contains(told), "{to}: {said}");
        serves("one\n");
    }
    // Its packages are nowhere but in the archive, and nobody answers for that.
    world.write(
        "kiln.hcl",
        &DEFINITION.replace(
            "[\"busybox-static\"]",
            "[\"busybox-static\", \"hello\"]\n    mirror = \"http://127.0.0.1:9/debian\"",
        ),
    );
    let said = world.fail(&["apply"], 1);
    assert!(said.contains("http://127.0.0.1:9/debian"), "{said}");
    serves("one\n");
    until("only the old set is left", || {
        let status = world.json(&["status", "--json"]);
        assert_eq!(status["services"][0]["release"]["number"], 1);
        status["services"][0]["instances"].as_array().unwrap().len() == 2
    });
    world.down();
}

#[test]
fn a_taken_port_is_told_and_nothing_stays() {
    let world = World::new();
    let taken = std::net::TcpListener::bind(("127.0.0.1", world.port)).unwrap();
    let said = world.fail(&["up", "--detach"], 1);
    assert!(
        said.contains(&format!("127.0.0.1:{}", world.port)) && said.contains("taken"),
        "{said}"
    );
    assert_eq!(world.left(), BTreeSet::new());
    drop(taken);
    world.succeed(&["up", "--detach"]);
    world.down();
}

#[test]
fn two_ups_at_once_both_get_what_they_ask() {
    let world = World::new();
    let children = [(); 2].map(|()| world.spawn(&["up", "--detach"]));
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{}{}",
            text(&output.stdout),
            text(&output.stderr)
        );
    }
    assert_eq!(world.answer().as_deref(), Some("one\n"));
    let status = world.json(&["status", "--json"]);
    assert_eq!(status["services"][0]["release"]["number"], 1);
    world.down();
}

#[test]
fn of_two_applies_at_once_none_is_half_done() {
    let world = World::new();
    world.succeed(&["up", "--detach"]);
    world.write("app/index.html", "two\n");
    let children = [(); 2].map(|()| world.spawn(&["apply"]));
    let mut codes = Vec::new();
    for child in children {
        let output = child.wait_with_output().unwrap();
        let error = text(&output.stderr);
        codes.push(output.status.code().unwrap());
        assert_eq!(
            output.status.success(),
            !error.contains("error: "),
            "{error}"
        );
        assert_eq!(
            output.status.success(),
            !error.contains("  help: "),
            "{error}"
        );
    }
    assert!(codes.contains(&0), "{codes:?}");
    assert_eq!(world.answer().as_deref(), Some("two\n"));
    world.down();
}

#[test]
fn a_root_that_can_not_be_written_is_told_before_a_bake() {
    let world = World::small("8m");
    world.mount(&["-o", "remount,ro"]);
    let said = world.fail(&["up", "--detach"], 1);
    assert!(said.contains("Read-only file system"), "{said}");
    assert!(said.contains(world.root().to_str().unwrap()), "{said}");
    assert_eq!(world.left(), BTreeSet::new());
}

#[test]
fn only_root_may() {
    use std::os::unix::process::CommandExt;
    let world = World::files();
    // The target folder may be where nobody else may look.
    let program = world.root().join("kiln");
    std::fs::copy(env!("CARGO_BIN_EXE_kiln"), &program).unwrap();
    for command in ["up", "bake", "plan", "apply"] {
        let output = std::process::Command::new(&program)
            .arg(command)
            .uid(65534)
            .gid(65534)
            .env_clear()
            .env("KILN_ROOT", world.root())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{command}");
        assert_eq!(
            text(&output.stderr),
            format!(
                "error: `kiln {command}` needs root: it mounts file systems and makes namespaces and cgroups\n  \
                 help: run the same with `sudo`\n"
            )
        );
    }
}

#[test]
fn an_interrupted_bake_leaves_nothing() {
    let world = World::new();
    world.write(
        "kiln.hcl",
        &DEFINITION.replace("  run_as", "  run = [\"sleep 300\"]\n  run_as"),
    );
    let child = world.spawn(&["up"]);
    until("the step runs", || {
        world.left().iter().any(|line| line.contains("sandbox"))
    });
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = text(&output.stderr);
    let last = format!(
        "interrupted: nothing was started on {}\n",
        world.root().display()
    );
    assert!(said.ends_with(&last), "{said}");
    assert_eq!(world.left(), BTreeSet::new());
}

#[test]
fn an_interrupted_wait_says_what_goes_on() {
    let world = World::new();
    world.write("kiln.hcl", &DEFINITION.replace("\"/ready\"", "\"/never\""));
    let child = world.spawn(&["up"]);
    until("the rollout runs", || {
        world
            .kiln(&["status", "--json"])
            .stdout
            .starts_with(b"{\"services\":[{")
    });
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    let said = text(&output.stderr);
    assert!(
        said.starts_with("interrupted: ") && said.contains("`kiln down`"),
        "{said}"
    );
    world.succeed(&["status"]);
    world.down();
}

#[test]
fn ctrl_c_while_following_ends_what_up_started() {
    let world = World::new();
    let child = world.spawn(&["up"]);
    until("it serves", || world.answer().is_some());
    until("the rollout has ended", || {
        let status = world.json(&["status", "--json"]);
        status["services"][0]["last_rollout"]["result"] == "done"
    });
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stdout) + &text(&output.stderr);
    // Between the rollout's end and the first log line it is still the wait that is interrupted.
    assert!(matches!(output.status.code(), Some(0 | 130)), "{said}");
    if output.status.code() == Some(130) {
        world.succeed(&["down"]);
    }
    assert_eq!(world.left(), BTreeSet::new(), "{said}");
}

#[test]
fn a_full_data_root_is_told_the_old_set_serves_and_with_space_an_apply_works() {
    let world = World::small("8m");
    world.succeed(&["up", "--detach"]);
    world.write("app/index.html", "two\n");
    world.commit();
    world.succeed(&["apply"]);
    let filler = world.root().join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while file.write_all(&[0; 512]).is_ok() {}
    drop(file);
    let said = world.fail(&["rollback", "web"], 1);
    assert!(said.contains("full"), "{said}");
    assert_eq!(world.answer().as_deref(), Some("two\n"));
    let status = world.json(&["status", "--json"]);
    let problem = status["problems"][0].as_str().unwrap();
    assert!(
        problem.contains("journal") && problem.contains("full"),
        "{problem}"
    );
    std::fs::remove_file(&filler).unwrap();
    world.write("app/index.html", "three\n");
    world.succeed(&["apply"]);
    assert_eq!(world.answer().as_deref(), Some("three\n"));
    assert_eq!(
        world.json(&["status", "--json"])["problems"],
        Value::Array(vec![])
    );
    world.down();
}
