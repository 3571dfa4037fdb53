//! Drains and deaths.

use std::time::{Duration, Instant};

use crate::client::{HttpClient, get};
use crate::machine::{Machine, draining, table, wait_for};
use crate::origin::Origin;

pub(crate) const TESTS: &[crate::Test] = &[
    (
        "draining_with_nothing_in_flight_returns_at_once",
        nothing_in_flight,
    ),
    (
        "requests_that_finish_within_the_deadline_are_served_by_the_old_set",
        finishes_in_time,
    ),
    (
        "past_the_deadline_requests_are_cut_with_504_and_nothing_hangs",
        cut_at_deadline,
    ),
    (
        "an_answer_that_has_begun_is_visibly_cut_at_the_deadline",
        begun_answer_is_cut,
    ),
    (
        "an_upgraded_connection_does_not_hold_the_drain_and_has_its_own_deadline",
        tunnels,
    ),
    (
        "a_set_that_serves_again_keeps_its_upgraded_connections",
        tunnels_return,
    ),
    (
        "a_draining_instance_gets_nothing_though_it_answers",
        draining_stays_out,
    ),
    (
        "an_instance_that_dies_in_the_middle_of_an_answer_is_seen_and_counted_once",
        dies_in_the_middle,
    ),
    (
        "all_instances_failing_is_fail_open_and_recovery_is_noticed",
        fail_open,
    ),
];

struct Two {
    _machine: Machine,
    listen: std::net::SocketAddr,
    a: Origin,
    b: Origin,
    controller: crate::machine::Controller,
}

/// Release 1 by `a` serves.
fn two() -> Two {
    let machine = Machine::start();
    let listen = machine.listener();
    let (a, b) = (Origin::start("a"), Origin::start("b"));
    let mut controller = machine.controller();
    controller.serve(&table(1, listen, 1, &[("a", a.address)]));
    Two {
        _machine: machine,
        listen,
        a,
        b,
        controller,
    }
}

impl Two {
    fn switch(&mut self, deadline: Duration) {
        let next = table(2, self.listen, 2, &[("b", self.b.address)]);
        self.controller.serve(&draining(next, 1, &["a"], deadline));
    }

    /// A request that `a` holds.
    fn hold(&self, path: &str) -> HttpClient {
        let before = self.a.requests();
        let mut client = HttpClient::connect(self.listen).unwrap();
        client
            .send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes())
            .unwrap();
        wait_for("the request at its instance", || {
            (self.a.requests() > before).then_some(())
        });
        client
    }
}

fn nothing_in_flight() {
    let mut two = two();
    assert_eq!(get(two.listen, "/").unwrap().text(), "a");
    let before = Instant::now();
    two.switch(Duration::from_secs(30));
    assert_eq!(two.controller.drained("a"), 0);
    // Far from the deadline, however slow the machine is at the moment.
    assert!(
        before.elapsed() < Duration::from_secs(15),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(get(two.listen, "/").unwrap().text(), "b");
}

fn finishes_in_time() {
    let mut two = two();
    let mut held = two.hold("/held");
    two.switch(Duration::from_secs(30));
    assert_eq!(get(two.listen, "/").unwrap().text(), "b");
    two.a.open_gate();
    let answer = held.answer().unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "a"));
    assert_eq!(two.controller.drained("a"), 0);
    assert_eq!(
        held.get("/").unwrap().text(),
        "b",
        "the client's connection goes on with the new set"
    );
}

fn cut_at_deadline() {
    let mut two = two();
    let mut held = two.hold("/held");
    let before = Instant::now();
    two.switch(Duration::from_millis(500));
    let answer = held.answer().unwrap();
    assert_eq!(answer.status, 504);
    assert!(
        answer.text().contains("drain deadline"),
        "{}",
        answer.text()
    );
    assert_eq!(two.controller.drained("a"), 1);
    assert!(before.elapsed() >= Duration::from_millis(500));
    let counters = two.controller.counters_of(1);
    assert_eq!(
        (counters.failed, counters.status[4], counters.in_flight),
        (1, 1, 0)
    );
}

fn begun_answer_is_cut() {
    let mut two = two();
    let mut held = two.hold("/held-chunk");
    assert_eq!(held.head().unwrap().status, 200);
    assert_eq!(held.chunk().unwrap(), b"first\n");
    two.switch(Duration::from_millis(300));
    assert!(held.chunk().is_err(), "a clean end");
    assert_eq!(two.controller.drained("a"), 1);
    assert_eq!(two.controller.counters_of(1).failed, 1);
}

fn tunnels() {
    let mut two = two();
    let mut clients: Vec<HttpClient> = (0..20)
        .map(|_| {
            let mut client = HttpClient::connect(two.listen).unwrap();
            client
                .send(b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                .unwrap();
            let head = client.head().unwrap();
            assert_eq!((head.status, head.header("upgrade")), (101, Some("websocket")));
            client.send(b"ping\n").unwrap();
            assert_eq!(client.line().unwrap(), "ping");
            client
        })
        .collect();
    let before = Instant::now();
    two.switch(Duration::from_secs(3));
    // The drain of requests has ended and the upgraded connection goes on.
    assert_eq!(two.controller.drained("a"), 0);
    let client = &mut clients[0];
    client.send(b"still\n").unwrap();
    assert_eq!(client.line().unwrap(), "still");
    let ends: Vec<Duration> = std::thread::scope(|scope| {
        let waits: Vec<_> = clients
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    assert!(client.line().is_err());
                    before.elapsed()
                })
            })
            .collect();
        waits.into_iter().map(|wait| wait.join().unwrap()).collect()
    });
    let (first, last) = (ends.iter().min().unwrap(), ends.iter().max().unwrap());
    assert!(*first >= Duration::from_millis(1200), "{ends:?}");
    assert!(
        *last - *first >= Duration::from_millis(500),
        "all at once: {ends:?}"
    );
}

fn tunnels_return() {
    let mut two = two();
    let mut client = HttpClient::connect(two.listen).unwrap();
    client
        .send(
            b"GET /socket HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        )
        .unwrap();
    assert_eq!(client.head().unwrap().status, 101);
    two.switch(Duration::from_secs(2));
    let back = table(3, two.listen, 1, &[("a", two.a.address)]);
    two.controller
        .serve(&draining(back, 2, &["b"], Duration::from_secs(2)));
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        client.send(b"ping\n").unwrap();
        assert_eq!(client.line().unwrap(), "ping");
    }
}

fn draining_stays_out() {
    let mut two = two();
    let _held = two.hold("/held");
    two.switch(Duration::from_secs(30));
    let before = two.a.requests();
    // It answers well, and another generation comes while it drains.
    let next = table(3, two.listen, 2, &[("b", two.b.address)]);
    two.controller
        .serve(&draining(next, 1, &["a"], Duration::from_secs(30)));
    for _ in 0..50 {
        assert_eq!(get(two.listen, "/").unwrap().text(), "b");
    }
    assert_eq!(two.a.requests(), before);
}

fn dies_in_the_middle() {
    let mut two = two();
    for (number, path) in ["/dies", "/dies-chunked"].into_iter().enumerate() {
        let error = get(two.listen, path).unwrap_err();
        assert!(
            matches!(
                error.kind(),
                std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset
            ),
            "{error}"
        );
        let failed = number as u64 + 1;
        wait_for("the count", || {
            (two.controller.counters_of(1).failed == failed).then_some(())
        });
    }
    // For HTTP/1.0 the end of the connection is the end of the answer: it must be a reset.
    let mut client = HttpClient::connect(two.listen).unwrap();
    client.send(b"GET /dies-chunked HTTP/1.0\r\n\r\n").unwrap();
    let error = client.answer().unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(get(two.listen, "/").unwrap().text(), "a");
    let counters = two.controller.counters_of(1);
    assert_eq!(
        (counters.served, counters.failed, counters.cancelled),
        (1, 3, 0)
    );
}

fn fail_open() {
    let machine = Machine::start();
    let listen = machine.listener();
    let mut controller = machine.controller();
    // Nobody listens there, until somebody does.
    let origin = Origin::start("a");
    let address = origin.address;
    drop(origin);
    controller.serve(&table(1, listen, 1, &[("a", address)]));
    let mut ejected = false;
    for _ in 0..10 {
        assert_eq!(get(listen, "/").unwrap().status, 502);
    }
    let mut hear = |wanted: bool| {
        controller.hear_until(|said| match said {
            kiln_model::FromProxy::Ejected {
                instance,
                ejected: is,
            } if is == wanted => {
                assert_eq!(instance.as_str(), "a");
                Some(())
            }
            _ => None,
        });
    };
    hear(true);
    ejected |= machine.log().contains("go to the least bad");
    let _origin = Origin::start_at("a", address);
    wait_for("recovery", || {
        (get(listen, "/").unwrap().status == 200).then_some(())
    });
    hear(false);
    assert!(ejected, "nobody said it: {}", machine.log());
}
