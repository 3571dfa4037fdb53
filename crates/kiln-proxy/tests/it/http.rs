//! What goes through, what is refused, and how.

use std::time::{Duration, Instant};

use crate::client::{Answer, HttpClient, get};
use crate::machine::{Controller, Machine, table, wait_for};
use crate::origin::Origin;

pub(crate) const TESTS: &[crate::Test] = &[
    ("bodies_stream_through_unbuffered_both_ways", streams),
    ("ambiguous_and_malformed_requests_are_400", malformed),
    (
        "a_client_that_goes_away_is_counted_as_cancelled",
        client_gone,
    ),
    (
        "query_host_and_request_id_are_kept_and_forwarding_fields_replaced",
        heads,
    ),
    ("a_retry_happens_only_where_it_can_not_be_seen", retries),
    (
        "an_idle_connection_that_the_instance_closed_loses_nothing",
        stale,
    ),
    (
        "no_answer_in_time_is_504_and_a_slow_head_is_closed",
        timeouts,
    ),
    ("fifty_listeners_come_and_go", listeners),
];

struct One {
    _machine: Machine,
    listen: std::net::SocketAddr,
    origin: Origin,
    controller: Controller,
}

fn one() -> One {
    one_on(Machine::start())
}

fn one_on(machine: Machine) -> One {
    let listen = machine.listener();
    let origin = Origin::start("a");
    let mut controller = machine.controller();
    controller.serve(&table(1, listen, 1, &[("a", origin.address)]));
    One {
        _machine: machine,
        listen,
        origin,
        controller,
    }
}

fn raw(one: &One, request: &str) -> Answer {
    let mut client = HttpClient::connect(one.listen).unwrap();
    client.send(request.as_bytes()).unwrap();
    client
        .answer()
        .unwrap_or_else(|error| panic!("{request:?}: {error}"))
}

fn streams() {
    let one = one();
    // The first piece comes while the instance still holds the second.
    let mut client = HttpClient::connect(one.listen).unwrap();
    client
        .send(b"GET /held-chunk HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    assert_eq!(
        client.head().unwrap().header("content-type"),
        Some("text/event-stream")
    );
    assert_eq!(client.chunk().unwrap(), b"first\n");
    one.origin.open_gate();
    assert_eq!(client.chunk().unwrap(), b"second\n");
    assert_eq!(client.chunk().unwrap(), b"");
    // Chunked towards the instance, and a body larger than any buffer.
    let mut client = HttpClient::connect(one.listen).unwrap();
    client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n").unwrap();
    assert_eq!(client.answer().unwrap().text(), "hello");
    let large = vec![b'z'; 8 << 20];
    assert!(client.post("/echo", &large).unwrap().body == large);
}

fn malformed() {
    let mut one = one();
    let before = one.origin.requests();
    for request in [
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET /\r\n\r\n",
    ] {
        assert_eq!(raw(&one, request).status, 400, "{request:?}");
    }
    assert_eq!(one.origin.requests(), before, "none reached the instance");
    let chunk = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n";
    assert_eq!(raw(&one, chunk).status, 400);
    let long = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Long: {}\r\n\r\n",
        "x".repeat(100_000)
    );
    let mut client = HttpClient::connect(one.listen).unwrap();
    // The proxy may close before all of it is written.
    let _ = client.send(long.as_bytes());
    let answer = client.answer().map(|answer| answer.status);
    assert!(matches!(answer, Ok(431) | Err(_)), "{answer:?}");
    assert_eq!(get(one.listen, "/").unwrap().status, 200);
    let counters = one.controller.counters_of(1);
    assert_eq!(
        (counters.served, counters.failed),
        (1, 0),
        "a client's fault is nobody's failure"
    );
}

fn client_gone() {
    let mut one = one();
    let mut client = HttpClient::connect(one.listen).unwrap();
    client
        .send(b"GET /held HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    wait_for("the request", || (one.origin.requests() == 1).then_some(()));
    drop(client);
    wait_for("the count", || {
        let counters = one.controller.counters_of(1);
        (counters.cancelled == 1 && counters.in_flight == 0 && counters.failed == 0).then_some(())
    });
    // In the middle of its own body.
    let mut client = HttpClient::connect(one.listen).unwrap();
    client
        .send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhalf")
        .unwrap();
    wait_for("the request", || (one.origin.requests() == 2).then_some(()));
    drop(client);
    wait_for("the count", || {
        let counters = one.controller.counters_of(1);
        (counters.cancelled == 2 && counters.in_flight == 0 && counters.failed == 0).then_some(())
    });
}

fn heads() {
    let one = one();
    let head = raw(
        &one,
        "GET /head?a=%zz&&b=[1]{2}|3&c=/../x HTTP/1.1\r\nHost: Shop.Example:8080\r\nX-Request-Id: mine-1\r\n\
         X-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\nForwarded: for=1.2.3.4\r\n\
         Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nX-End: 2\r\n\r\n",
    )
    .text()
    .to_lowercase();
    for there in [
        "get /head?a=%zz&&b=[1]{2}|3&c=/../x http/1.1",
        "host: shop.example:8080\r\n",
        "x-request-id: mine-1",
        "x-forwarded-for: 127.0.0.1",
        "x-forwarded-proto: http\r\n",
        "x-forwarded-host: shop.example:8080",
        "x-end: 2",
    ] {
        assert!(head.contains(there), "{there} is not in {head}");
    }
    for gone in ["1.2.3.4", "x-hop", "te: trailers", "connection:"] {
        assert!(!head.contains(gone), "{gone} is in {head}");
    }
    assert!(
        get(one.listen, "/head")
            .unwrap()
            .text()
            .contains("x-request-id: "),
        "generated"
    );
}

fn retries() {
    let mut one = one();
    // Refused connections are tried elsewhere, bodies included.
    let dead = {
        let origin = Origin::start("dead");
        origin.address
    };
    one.controller.serve(&table(
        2,
        one.listen,
        2,
        &[("a2", one.origin.address), ("dead", dead)],
    ));
    for _ in 0..20 {
        assert_eq!(
            HttpClient::connect(one.listen)
                .unwrap()
                .post("/echo", b"body")
                .unwrap()
                .text(),
            "body"
        );
    }
    assert_eq!(one.controller.counters_of(2).failed, 0);
    // A request that was sent and not answered is sent again only if it is idempotent.
    let (b, c) = (Origin::start("b"), Origin::start("c"));
    one.controller.serve(&table(
        3,
        one.listen,
        3,
        &[("b", b.address), ("c", c.address)],
    ));
    assert_eq!(
        HttpClient::connect(one.listen)
            .unwrap()
            .post("/closes", b"body")
            .unwrap()
            .status,
        502
    );
    assert_eq!(b.requests() + c.requests(), 1, "a POST is sent once");
    assert_eq!(get(one.listen, "/closes").unwrap().status, 502);
    assert_eq!(
        (b.requests() + c.requests(), b.requests().min(c.requests())),
        (3, 1),
        "a GET once at each"
    );
}

fn stale() {
    let mut one = one();
    let mut client = HttpClient::connect(one.listen).unwrap();
    for round in 0..50 {
        let answer = match round % 2 {
            0 => client.get("/").unwrap(),
            _ => client.post("/echo", b"a").unwrap(),
        };
        assert_eq!((answer.status, answer.text().as_str()), (200, "a"));
        one.origin.close_connections();
    }
    assert!(one.origin.connections() >= 50);
    assert_eq!(one.controller.counters_of(1).failed, 0);
    // While it does not, connections are kept.
    let before = one.origin.connections();
    for _ in 0..50 {
        client.get("/").unwrap();
    }
    assert!(one.origin.connections() <= before + 2);
}

fn timeouts() {
    let mut one = one_on(Machine::start_impatient());
    let before = Instant::now();
    let answer = get(one.listen, "/held").unwrap();
    assert_eq!(answer.status, 504);
    assert!(
        answer
            .text()
            .starts_with("kiln: a did not answer in time (request "),
        "{}",
        answer.text()
    );
    assert!(
        before.elapsed() >= Duration::from_millis(1500),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(one.controller.counters_of(1).failed, 1);
    let before = Instant::now();
    let mut client = HttpClient::connect(one.listen).unwrap();
    client.send(b"GET / HTTP/1.1\r\nHost:").unwrap();
    assert!(client.line().is_err());
    assert!(
        before.elapsed() >= Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    // A client that doesn't read doesn't hold its instance for ever.
    let mut client = HttpClient::connect(one.listen).unwrap();
    client
        .send(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        .unwrap();
    wait_for("its end", || {
        let counters = one.controller.counters_of(1);
        (counters.cancelled >= 1 && counters.in_flight == 0).then_some(())
    });
}

fn listeners() {
    let mut one = one();
    let machine = &one._machine;
    let mut wide = table(2, one.listen, 1, &[("a", one.origin.address)]);
    let listens: Vec<_> = (0..50).map(|_| machine.listener()).collect();
    for (number, listen) in listens.iter().enumerate() {
        let mut route = wide.routes[0].clone();
        route.listen = Some(*listen);
        route.service = kiln_model::ServiceKey::try_from(format!("dev/s{number}")).unwrap();
        wide.routes.push(route);
    }
    one.controller.serve(&wide);
    for listen in &listens {
        assert_eq!(get(*listen, "/").unwrap().text(), "a");
    }
    one.controller
        .serve(&table(3, one.listen, 1, &[("a", one.origin.address)]));
    let mut client = machine.client();
    for listen in &listens {
        client.remove(&listen.to_string()).unwrap();
    }
    assert_eq!(client.names().unwrap(), [one.listen.to_string()]);
    for listen in &listens {
        wait_for("the listener to be closed", || {
            let refused = std::net::TcpStream::connect_timeout(listen, Duration::from_secs(1));
            refused
                .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                .then_some(())
        });
    }
    assert_eq!(get(one.listen, "/").unwrap().text(), "a");
}
