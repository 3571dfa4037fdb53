//! Switches under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, Instant};

use kiln_model::{FromProxy, Generation, ServiceKey, ToProxy, Weight};

use crate::client::HttpClient;
use crate::machine::{Machine, draining, table, wait_for};
use crate::origin::Origin;

pub(crate) const TESTS: &[crate::Test] = &[
    ("a_switch_under_load_loses_no_request", switch_under_load),
    (
        "after_confirmation_no_request_reaches_the_set_before",
        confirmed_means_switched,
    ),
    (
        "the_proxy_replaced_under_load_refuses_and_resets_no_connection",
        replaced_under_load,
    ),
    (
        "sets_get_their_shares_and_are_counted_by_release",
        weighted_sets,
    ),
    (
        "tables_that_are_older_or_differ_are_refused",
        refused_tables,
    ),
    (
        "a_service_without_its_socket_stays_as_it_is_and_the_rest_switches",
        lacking_socket,
    ),
];

/// Clients that never pause: half of them on new connections, half of the requests with a body.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    pub(crate) done: Arc<AtomicU64>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    pub(crate) fn start(listen: std::net::SocketAddr) -> Self {
        let (stop, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let threads = (0..8)
            .map(|number| {
                let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
                std::thread::spawn(move || {
                    let mut lost = Vec::new();
                    let mut kept: Option<HttpClient> = None;
                    let body = vec![b'b'; 2000];
                    let mut count = 0_u64;
                    while !stop.load(SeqCst) {
                        count += 1;
                        let answer = (|| {
                            let mut client = match kept.take() {
                                Some(client) => client,
                                None => HttpClient::connect(listen)?,
                            };
                            let answer = match count % 2 {
                                0 => client.post("/echo", &body)?,
                                _ if count.is_multiple_of(31) => client.get("/chunked")?,
                                _ => client.get("/")?,
                            };
                            let closes = answer.header("connection") == Some("close");
                            if number % 2 == 0 && !closes {
                                kept = Some(client);
                            }
                            Ok::<_, std::io::Error>(answer)
                        })();
                        match answer {
                            Ok(answer) if answer.status == 200 => {
                                if count.is_multiple_of(2) && answer.body != body {
                                    lost.push("another body".to_owned());
                                }
                            }
                            Ok(answer) => lost.push(format!("{} {}", answer.status, answer.text())),
                            Err(error) => lost.push(error.to_string()),
                        }
                        done.fetch_add(1, SeqCst);
                    }
                    lost
                })
            })
            .collect();
        Self {
            stop,
            done,
            threads,
        }
    }

    /// What was lost, each with how.
    pub(crate) fn end(self) -> Vec<String> {
        self.stop.store(true, SeqCst);
        self.threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    }
}

fn switch_under_load() {
    let machine = Machine::start();
    let listen = machine.listener();
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut controller = machine.controller();
    controller.serve(&table(1, listen, 1, &[("a", a.address)]));
    let load = Load::start(listen);
    let mut generation = 1;
    let mut took = Vec::new();
    while load.done.load(SeqCst) < 20_000 {
        generation += 1;
        let (release, id, origin, other) = match generation % 2 {
            0 => (2, "b", &b, "a"),
            _ => (1, "a", &a, "b"),
        };
        let before = Instant::now();
        let next = table(generation, listen, release, &[(id, origin.address)]);
        controller.serve(&draining(
            next,
            3 - release,
            &[other],
            Duration::from_secs(10),
        ));
        took.push(before.elapsed());
        assert_eq!(controller.drained(other), 0);
    }
    let done = load.done.load(SeqCst);
    let lost = load.end();
    took.sort();
    println!(
        "{} switches, {done} requests, confirmed in {:?} (median), {:?} (most)",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1]
    );
    assert_eq!(lost, Vec::<String>::new());
    assert!(took.len() >= 20, "only {} switches", took.len());
    let counters = controller.counters();
    assert_eq!(
        counters
            .iter()
            .map(|counters| counters.failed + counters.cancelled)
            .sum::<u64>(),
        0,
        "{counters:?}"
    );
    let served: u64 = counters.iter().map(|counters| counters.served).sum();
    assert_eq!(served, a.requests() + b.requests());
    assert!(served >= done, "{served} < {done}");
    assert!(counters.iter().all(|counters| counters.in_flight == 0));
}

fn confirmed_means_switched() {
    let machine = Machine::start();
    let listen = machine.listener();
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut controller = machine.controller();
    controller.serve(&table(1, listen, 1, &[("a", a.address)]));
    let load = Load::start(listen);
    for generation in 2..60 {
        let (id, now, before, other) = match generation % 2 {
            0 => ("b", &b, &a, "a"),
            _ => ("a", &a, &b, "b"),
        };
        let next = table(generation, listen, generation, &[(id, now.address)]);
        controller.serve(&draining(
            next,
            generation - 1,
            &[other],
            Duration::from_secs(10),
        ));
        controller.drained(other);
        let at_drain = before.requests();
        let seen = load.done.load(SeqCst);
        wait_for("more requests", || {
            (load.done.load(SeqCst) > seen + 50).then_some(())
        });
        assert_eq!(
            before.requests(),
            at_drain,
            "a request reached {other} after it was drained"
        );
    }
    assert_eq!(load.end(), Vec::<String>::new());
}

fn replaced_under_load() {
    let machine = Machine::start();
    let listen = machine.listener();
    let origin = Origin::start("a");
    let first = table(1, listen, 1, &[("a", origin.address)]);
    machine.controller().serve(&first);
    let load = Load::start(listen);
    for _ in 0..5 {
        let before = machine.proxy();
        machine.client().restart_proxy().unwrap();
        let after = machine.proxy();
        assert_ne!(before, after);
        let seen = load.done.load(SeqCst);
        wait_for("requests by the successor", || {
            (load.done.load(SeqCst) > seen + 500).then_some(())
        });
    }
    let done = load.done.load(SeqCst);
    let lost = load.end();
    println!("5 proxies, {done} requests");
    assert_eq!(lost, Vec::<String>::new());
    wait_for("the retired ones to end", || {
        machine.status().retiring.is_empty().then_some(())
    });
}

fn weighted_sets() {
    let machine = Machine::start();
    let listen = machine.listener();
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut controller = machine.controller();
    let mut shared = table(1, listen, 1, &[("a", a.address)]);
    let other = table(1, listen, 2, &[("b", b.address)]);
    let mut sets = [&shared, &other].map(|table| table.routes[0].sets[0].clone());
    for (set, weight) in sets.iter_mut().zip([800, 200]) {
        set.weight = Weight::try_from(weight).unwrap();
    }
    shared.routes[0].sets = sets.to_vec();
    controller.serve(&shared);
    for _ in 0..1000 {
        crate::client::get(listen, "/").unwrap();
    }
    let (of_a, of_b) = (a.requests(), b.requests());
    assert_eq!(of_a + of_b, 1000);
    // Six standard deviations.
    assert!((124..277).contains(&of_b), "{of_b}");
    assert_eq!(controller.counters_of(1).served, of_a);
    assert_eq!(controller.counters_of(2).served, of_b);
    // A set that has nobody costs no request.
    shared.generation = shared.generation.next();
    shared.routes[0].sets[0].backends.clear();
    controller.serve(&shared);
    for _ in 0..20 {
        assert_eq!(crate::client::get(listen, "/").unwrap().text(), "b");
    }
}

fn refused_tables() {
    let machine = Machine::start();
    let listen = machine.listener();
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut controller = machine.controller();
    let present = table(5, listen, 1, &[("a", a.address)]);
    controller.serve(&present);
    controller.serve(&present);
    for (refused, why) in [
        (table(4, listen, 2, &[("b", b.address)]), "newer"),
        (table(5, listen, 2, &[("b", b.address)]), "other routes"),
    ] {
        controller.say(&ToProxy::Table { table: refused });
        controller.hear_until(|said| match said {
            FromProxy::Refused {
                served,
                services,
                digest,
                reason,
                ..
            } => {
                assert!(reason.contains(why), "{reason}");
                assert_eq!((served, services), (Some(Generation(5)), Vec::new()));
                assert_eq!(digest, present.digest().ok());
                Some(())
            }
            FromProxy::Confirmed { .. } => panic!("confirmed"),
            _ => None,
        });
        assert_eq!(crate::client::get(listen, "/").unwrap().text(), "a");
    }
}

fn lacking_socket() {
    let machine = Machine::start();
    let [api, web] = [machine.listener(), machine.listener()];
    // Taken, so that nobody else gets it; not deposited yet.
    let later = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let moved = later.local_addr().unwrap();
    let [a, b, c, d] = ["a", "b", "c", "d"].map(Origin::start);
    let both = |generation, api, of_api: (&str, _), of_web: (&str, _)| {
        let mut both = table(generation, api, generation, &[of_api]);
        let mut other = table(generation, web, generation, &[of_web]);
        other.routes[0].service = ServiceKey::try_from("dev/web".to_owned()).unwrap();
        both.routes.append(&mut other.routes);
        both
    };
    let mut controller = machine.controller();
    controller.serve(&both(1, api, ("a", a.address), ("c", c.address)));
    let mut held = HttpClient::connect(web).unwrap();
    held.send(b"GET /held HTTP/1.1\r\nHost: web\r\n\r\n")
        .unwrap();
    wait_for("the request at its instance", || {
        (c.requests() == 1).then_some(())
    });
    let next = both(2, moved, ("b", b.address), ("d", d.address));
    let next = draining(next, 1, &["a", "c"], Duration::from_millis(300));
    controller.say(&ToProxy::Table { table: next });
    // The wait for the socket holds no cut.
    let cut_at = std::thread::spawn(move || {
        assert_eq!(held.answer().unwrap().status, 504);
        Instant::now()
    });
    let refused_at = controller.hear_until(|said| match said {
        FromProxy::Refused {
            generation,
            services,
            reason,
            served,
            ..
        } => {
            assert_eq!((generation, served), (Generation(2), None));
            assert_eq!(services, [crate::machine::service()]);
            assert!(reason.contains(&moved.to_string()), "{reason}");
            Some(Instant::now())
        }
        FromProxy::Confirmed { .. } | FromProxy::Drained { .. } => panic!("{said:?}"),
        _ => None,
    });
    assert!(cut_at.join().unwrap() < refused_at);
    // The rest is served, and drained where it was replaced; the service itself goes on as it was.
    let confirmed = |said| match said {
        FromProxy::Confirmed { generation } => Some(generation),
        _ => None,
    };
    assert_eq!(controller.hear_until(confirmed), Generation(2));
    assert_eq!(controller.drained("c"), 1);
    assert_eq!(crate::client::get(web, "/").unwrap().text(), "d");
    assert_eq!(crate::client::get(api, "/").unwrap().text(), "a");
    // With its socket it is served as well.
    machine
        .client()
        .deposit(&moved.to_string(), &later)
        .unwrap();
    assert_eq!(controller.hear_until(confirmed), Generation(2));
    assert_eq!(crate::client::get(moved, "/").unwrap().text(), "b");
    assert_eq!(controller.drained("a"), 0);
}
