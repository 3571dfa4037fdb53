use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use kiln_model::api::{Event, LogLine};
use kiln_model::{Actor, StateId, Subject};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use crate::client;
use crate::world::{World, until};

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("an_instance_that_is_a_path_is_refused", instance_is_no_path),
    (
        "the_api_goes_on_after_the_descriptors_ran_out",
        descriptors_run_out,
    ),
    (
        "a_reader_of_logs_that_stops_fills_no_memory_and_hears_what_it_missed",
        stopped_reader,
    ),
    ("events_are_read_by_number_and_followed", events),
    ("readers_that_stay_leave_room_for_calls", many_readers),
    ("what_is_no_call_is_told_as_json", no_call),
];

/// An answer that is read line by line, or not at all.
struct Stream(BufReader<UnixStream>);

impl Stream {
    fn get(world: &World, path: &str) -> Self {
        let mut stream = UnixStream::connect(world.socket()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        Self(BufReader::new(stream))
    }

    /// The next line that is a JSON object: heads and chunk sizes are none.
    fn next<T: serde::de::DeserializeOwned>(&mut self) -> T {
        loop {
            let mut line = String::new();
            assert_ne!(
                self.0.read_line(&mut line).unwrap(),
                0,
                "the answer goes on"
            );
            if line.starts_with('{') {
                // A chunk may end within a line; then its end and the next one's size stand in between.
                while serde_json::from_str::<serde_json::Value>(&line).is_err() {
                    line.truncate(line.trim_end().len());
                    let mut size = String::new();
                    self.0.read_line(&mut size).unwrap();
                    self.0.read_line(&mut line).unwrap();
                }
                return serde_json::from_str(&line).unwrap();
            }
        }
    }
}

fn controller(world: &World) -> i32 {
    world.process("serve").expect("a controller runs")
}

fn memory(world: &World) -> u64 {
    let pid = controller(world);
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    kilobytes.unwrap().parse::<u64>().unwrap() * 1024
}

fn instance_is_no_path() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let logs = |instance: &str| {
        let path = format!("/v1/logs?environment=dev&service=app&instance={instance}");
        client::unix(&world.socket(), "GET", &path, b"").unwrap()
    };
    for path in ["../../x", "..%2F..%2Fx", "/etc/passwd", "app-dev-1-1/../x"] {
        let answer = logs(path);
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, 400, "{path}: {text}");
        assert!(text.contains("bad_request"), "{text}");
    }
    assert_eq!(logs("app-dev-1-1").status, 200);
    // Of another service.
    assert_eq!(logs("web-dev-1-1").status, 404);
    assert_eq!(world.down(), Default::default());
}

fn descriptors_run_out() {
    let world = World::new();
    let pid = Pid::from_raw(controller(&world));
    let open = || {
        let path = format!("/proc/{}/fd", controller(&world));
        std::fs::read_dir(path).unwrap().count() as u64
    };
    let before = getrlimit(Resource::Nofile);
    let limit = open() + 5;
    let lowered = Rlimit {
        current: Some(limit),
        maximum: before.maximum,
    };
    prlimit(pid, Resource::Nofile, lowered).unwrap();
    let connections: Vec<_> = (0..30)
        .map(|_| UnixStream::connect(world.socket()).unwrap())
        .collect();
    until("the controller has no descriptor left", || open() >= limit);
    drop(connections);
    until("the controller answers", || {
        client::unix(&world.socket(), "GET", "/v1/ping", b"").is_ok_and(|a| a.status == 204)
    });
    assert_eq!(world.down(), Default::default());
}

fn stopped_reader() {
    const LINES: u64 = 40_000;
    let world = World::new();
    let mut spec = world.spec("one");
    spec.services
        .values_mut()
        .for_each(|s| s.policy.replicas = 1);
    world.apply(&spec).unwrap();
    let before = memory(&world);
    let mut stream = Stream::get(
        &world,
        "/v1/logs?environment=dev&service=app&lines=1&follow=true",
    );
    let _: LogLine = stream.next();
    // Twenty-four million bytes: several times as much as JSON in memory, and less than the two files of a log hold.
    let stopped = Instant::now();
    for _ in 0..2 {
        for _ in 0..3 {
            assert_eq!(world.get(&format!("/say/{LINES}")).status, 200);
            let grown = memory(&world).saturating_sub(before);
            assert!(grown < 32 << 20, "{grown} bytes more are in use");
        }
        until(
            "it has read nothing for longer than it is waited for",
            || stopped.elapsed() > Duration::from_secs(3),
        );
    }
    // It reads again: what it missed is told, and then what is said from now on.
    let mut told = 0;
    let missed = loop {
        let line: LogLine = stream.next();
        match line.left_out {
            Some(count) => break count,
            None => told += 1,
        }
    };
    assert!(missed > LINES, "{missed}");
    world.get("/say/1");
    while told + missed < 6 * LINES + 1 {
        let line: LogLine = stream.next();
        told += line.left_out.unwrap_or(1);
    }
    assert_eq!(
        told + missed,
        6 * LINES + 1,
        "every line is told or counted"
    );
    assert_eq!(world.down(), Default::default());
}

fn events() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let path = "/v1/events?after=0&environment=dev&service=app&follow=true";
    let mut stream = Stream::get(&world, path);
    let first: Event = stream.next();
    assert_eq!(first.state, StateId(1));
    assert_eq!(first.entry.actor, Some(Actor::Uid(0)));
    assert!(matches!(first.entry.subject, Subject::Service(key) if key.to_string() == "dev/app"));
    let fact = serde_json::to_value(&first.entry.fact).unwrap();
    assert_eq!(fact["event"]["kind"], "deploy");
    // It follows: the next deployment is told as it happens.
    world.apply(&world.spec("two")).unwrap();
    let mut last = first.state;
    loop {
        let event: Event = stream.next();
        assert_eq!(event.state, last.next(), "no entry is left out");
        last = event.state;
        let fact = serde_json::to_value(&event.entry.fact).unwrap();
        if fact["event"]["kind"] == "deploy" {
            assert_eq!(fact["event"]["origin"]["tag"], "app:two");
            break;
        }
    }
    // Without following, the answer ends.
    let after = format!("/v1/events?after={}&limit=2", last.0 - 3);
    let answer = client::unix(&world.socket(), "GET", &after, b"").unwrap();
    let numbers: Vec<u64> = answer
        .body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_slice::<Event>(line).unwrap().state.0)
        .collect();
    assert_eq!(numbers, [last.0 - 2, last.0 - 1]);
    let none = client::unix(&world.socket(), "GET", "/v1/events?environment=prod", b"").unwrap();
    assert_eq!((none.status, none.body.len()), (200, 0));
    assert_eq!(world.down(), Default::default());
}

fn no_call() {
    let world = World::new();
    for (method, path, status, code) in [
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/v1/status", 404, "not_found"),
        ("GET", "/v1/status?environment=No", 400, "bad_request"),
        ("GET", "/v1/logs?service=app", 400, "bad_request"),
        ("GET", "/v1/events?after=x", 400, "bad_request"),
        ("POST", "/v1/plan", 400, "bad_request"),
        (
            "GET",
            "/v1/logs?environment=dev&service=none",
            404,
            "not_found",
        ),
    ] {
        let answer = client::unix(&world.socket(), method, path, b"{").unwrap();
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, status, "{method} {path}: {text}");
        let error: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(error["code"], code, "{method} {path}: {text}");
    }
    assert_eq!(world.down(), Default::default());
}

fn many_readers() {
    let world = World::new();
    world.apply(&world.spec("one")).unwrap();
    let mut readers: Vec<Stream> = (0..192)
        .map(|_| {
            let mut stream = Stream::get(&world, "/v1/events?follow=true");
            let _: Event = stream.next();
            stream
        })
        .collect();
    let get = |path| client::unix(&world.socket(), "GET", path, b"").unwrap();
    let refused = get("/v1/events?follow=true");
    assert_eq!(refused.status, 503);
    assert!(String::from_utf8_lossy(&refused.body).contains("192 readers"));
    assert_eq!(get("/v1/ping").status, 204);
    assert_eq!(world.status().unwrap().services.len(), 1);
    readers.pop();
    until("there is room for a reader", || {
        get("/v1/events?limit=1").status == 200
    });
    assert_eq!(world.down(), Default::default());
}
