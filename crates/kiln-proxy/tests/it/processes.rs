//! Proxies and supervisors that die, and their successors.

use std::time::{Duration, Instant};

use kiln_supervise::handoff::Client;
use rustix::process::Signal;

use crate::client::{HttpClient, get};
use crate::machine::{Controller, Machine, kill, lives, table, wait_for};
use crate::origin::Origin;
use crate::switch::Load;

pub(crate) const TESTS: &[crate::Test] = &[
    (
        "a_killed_proxy_is_replaced_and_serves_its_saved_table",
        killed_proxy,
    ),
    (
        "a_spoilt_table_is_shouted_answered_503_and_replaced_by_a_controllers",
        spoilt_table,
    ),
    (
        "a_successor_without_a_table_leaves_serving_to_its_predecessor",
        spoilt_handover,
    ),
    (
        "a_saved_table_that_differs_from_the_controllers_is_replaced",
        differing_table,
    ),
    (
        "a_killed_supervisor_leaves_the_proxy_and_the_next_adopts_it",
        killed_supervisor,
    ),
    (
        "a_killed_controller_is_started_again_at_once",
        killed_controller,
    ),
    (
        "a_second_supervisor_is_refused_with_the_pid_of_the_first",
        second_supervisor,
    ),
    (
        "a_controller_that_does_not_answer_is_replaced",
        stopped_controller,
    ),
    (
        "files_of_run_that_somebody_removed_are_made_anew",
        removed_files,
    ),
    ("the_proxy_has_no_privileges", privileges),
    (
        "an_orderly_end_leaves_no_process_and_no_socket",
        orderly_end,
    ),
    (
        "sighup_executes_the_supervisor_anew_and_keeps_the_sockets",
        upgrade,
    ),
];

struct Serving {
    machine: Machine,
    listen: std::net::SocketAddr,
    origin: Origin,
}

fn serving() -> Serving {
    let machine = Machine::start();
    let listen = machine.listener();
    let origin = Origin::start("a");
    machine
        .controller()
        .serve(&table(7, listen, 1, &[("a", origin.address)]));
    Serving {
        machine,
        listen,
        origin,
    }
}

fn killed_proxy() {
    let serving = serving();
    let pid = serving.machine.proxy();
    kill(pid, Signal::KILL);
    // The socket is the supervisor's too: nobody is refused, the connection waits for the successor.
    wait_for("the successor", || {
        get(serving.listen, "/")
            .ok()
            .filter(|answer| answer.text() == "a")
    });
    assert_ne!(serving.machine.proxy(), pid);
    assert_eq!(serving.machine.status().proxy_restarts, 1);
    wait_for("the files of the dead to go", || {
        (!serving
            .machine
            .root
            .join(format!("run/proxy/{pid}.sock"))
            .exists())
        .then_some(())
    });
    let mut controller = serving.machine.controller();
    assert!(matches!(
        controller.hear(),
        kiln_model::FromProxy::Hello {
            generation: kiln_model::Generation(7),
            ..
        }
    ));
}

fn spoilt_table() {
    let serving = serving();
    let path = serving.machine.root.join("proxy/table.json");
    let right = table(7, serving.listen, 1, &[("a", serving.origin.address)]);
    let whole = std::fs::read_to_string(&path).unwrap();
    let port = format!(":{}", serving.origin.address.port());
    // Cut, and still right JSON with requests going elsewhere.
    for spoilt in [&whole[..whole.len() / 2], &whole.replace(&port, ":1")] {
        std::fs::write(&path, spoilt).unwrap();
        let before = serving.machine.proxy();
        kill(before, Signal::KILL);
        let answer = wait_for("an answer", || get(serving.listen, "/").ok());
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(
            answer.text().contains("no routing table"),
            "{}",
            answer.text()
        );
        let log = serving.machine.log();
        assert!(log.contains("THE SAVED ROUTING TABLE IS SPOILT"), "{log}");
        let aside = serving.machine.root.join("proxy/table.spoilt.json");
        assert_eq!(std::fs::read_to_string(aside).unwrap(), spoilt);
        // The very generation that it had.
        serving.machine.controller().serve(&right);
        assert_eq!(get(serving.listen, "/").unwrap().text(), "a");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), whole);
    }
}

fn spoilt_handover() {
    let serving = serving();
    let Serving {
        machine,
        listen,
        origin,
    } = &serving;
    let path = machine.root.join("proxy/table.json");
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let before = machine.proxy();
    std::thread::scope(|scope| {
        let restart = scope.spawn(|| machine.client().restart_proxy());
        let successor = wait_for("the successor", || {
            let names = std::fs::read_dir(machine.root.join("run/proxy")).unwrap();
            let mut pids = names.filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_suffix(".sock")?.parse::<u32>().ok()
            });
            pids.find(|pid| *pid != before)
        });
        // Longer than a successor with a table waits for a controller.
        let until = Instant::now() + Duration::from_secs(2);
        while Instant::now() < until {
            assert_eq!(get(*listen, "/").unwrap().text(), "a");
        }
        assert_eq!(machine.status().proxy, Some(before));
        let right = table(7, *listen, 1, &[("a", origin.address)]);
        Controller::connect(&machine.root, successor).serve(&right);
        restart.join().unwrap().unwrap();
        assert_eq!(machine.status().proxy, Some(successor));
        assert_eq!(get(*listen, "/").unwrap().text(), "a");
    });
}

fn differing_table() {
    let serving = serving();
    let path = serving.machine.root.join("proxy/table.json");
    let right = table(7, serving.listen, 1, &[("a", serving.origin.address)]);
    // As the first kiln wrote it, and then changed by somebody.
    let text = serde_json::to_string(&right).unwrap();
    let port = format!(":{}", serving.origin.address.port());
    std::fs::write(&path, text.replace(&port, ":1")).unwrap();
    kill(serving.machine.proxy(), Signal::KILL);
    wait_for("the wrong table", || {
        get(serving.listen, "/")
            .ok()
            .filter(|answer| answer.status == 502)
    });
    serving.machine.controller().serve(&right);
    assert_eq!(get(serving.listen, "/").unwrap().text(), "a");
    // With a checksum as well: the controller knows better than the disk.
    kill(serving.machine.proxy(), Signal::KILL);
    wait_for("the successor", || get(serving.listen, "/").ok());
    let other = Origin::start("b");
    let mut controller = serving.machine.controller();
    controller.serve(&table(7, serving.listen, 1, &[("b", other.address)]));
    assert_eq!(get(serving.listen, "/").unwrap().text(), "b");
    // But no controller says two things of one generation.
    controller.say(&kiln_model::ToProxy::Table { table: right });
    controller.hear_until(|said| match said {
        kiln_model::FromProxy::Refused { served, .. } => {
            assert_eq!(served, Some(kiln_model::Generation(7)));
            Some(())
        }
        kiln_model::FromProxy::Confirmed { .. } => panic!("confirmed"),
        _ => None,
    });
}

fn killed_supervisor() {
    let mut serving = serving();
    let before = serving.machine.status();
    serving.machine.kill_supervisor();
    assert_eq!(get(serving.listen, "/").unwrap().text(), "a");
    serving.machine.start_supervisor();
    wait_for("the adoption", || {
        let status = serving.machine.status();
        (status.proxy == before.proxy
            && status.controller == before.controller
            && status.descriptors == [serving.listen.to_string()])
        .then_some(())
    });
    // The adopted ones are watched like its own.
    kill(before.proxy.unwrap(), Signal::KILL);
    wait_for("the successor", || {
        get(serving.listen, "/")
            .ok()
            .filter(|answer| answer.text() == "a")
    });
    let listen = serving.machine.listener();
    let origin = Origin::start("b");
    serving
        .machine
        .controller()
        .serve(&table(8, listen, 2, &[("b", origin.address)]));
    assert_eq!(get(listen, "/").unwrap().text(), "b");
}

fn killed_controller() {
    let serving = serving();
    let pid = wait_for("a controller", || serving.machine.status().controller);
    kill(pid, Signal::KILL);
    wait_for("the next controller", || {
        serving
            .machine
            .status()
            .controller
            .filter(|next| *next != pid)
    });
}

fn stopped_controller() {
    let machine = Machine::start_impatient();
    // One that answers is left alone.
    wait_for("answers of the controller", || {
        let log = std::fs::read_to_string(machine.root.join("log/controller.log")).ok()?;
        (log.matches("answered").count() >= 3).then_some(())
    });
    let pid = machine.status().controller.unwrap();
    assert_eq!(machine.status().controller_restarts, 0);
    kill(pid, Signal::STOP);
    wait_for("the next controller", || {
        machine.status().controller.filter(|next| *next != pid)
    });
    assert!(!lives(pid));
    assert_eq!(machine.status().controller_restarts, 1);
    let log = std::fs::read_to_string(machine.root.join("supervise.log")).unwrap();
    let said = format!("the controller, pid {pid}, has not answered for");
    assert!(log.contains(&said), "{log}");
}

fn removed_files() {
    let serving = serving();
    let Serving {
        machine, listen, ..
    } = &serving;
    let before = machine.status();
    wait_for("the controller's socket", || {
        machine.root.join("run/kiln.sock").exists().then_some(())
    });
    let load = Load::start(*listen);
    std::fs::remove_dir_all(machine.root.join("run")).unwrap();
    wait_for("successors that can be found", || {
        let status = Client::connect(&machine.root).ok()?.status().ok()?;
        let is_there = status.pid == before.pid
            && status.proxy.is_some_and(|pid| Some(pid) != before.proxy)
            && machine.root.join("run/kiln.sock").exists();
        is_there.then_some(())
    });
    let origin = Origin::start("b");
    machine
        .controller()
        .serve(&table(8, *listen, 2, &[("b", origin.address)]));
    wait_for("requests by the new table", || {
        (origin.requests() > 100).then_some(())
    });
    assert_eq!(load.end(), Vec::<String>::new());
    let last = machine.status();
    machine.client().shutdown().unwrap();
    for pid in [last.controller.unwrap(), last.proxy.unwrap()] {
        assert!(!lives(pid));
    }
}

fn second_supervisor() {
    let serving = serving();
    let second = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "supervise".as_ref(),
            "--root".as_ref(),
            serving.machine.root.as_os_str(),
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(
        said.contains(&format!(
            "already running: a supervisor with pid {}",
            serving.machine.supervisor()
        )),
        "{said}"
    );
    assert_eq!(get(serving.listen, "/").unwrap().text(), "a");
}

fn privileges() {
    let serving = serving();
    let pid = serving.machine.proxy();
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line[name.len()..]
                .split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        let uid = crate::PROXY_UID.to_string();
        assert!(
            field("Uid:")
                .iter()
                .chain(&field("Gid:"))
                .all(|id| *id == uid),
            "{status}"
        );
        assert_eq!(field("Groups:"), Vec::<String>::new());
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{set}");
        }
        assert_eq!(field("NoNewPrivs:"), ["1"]);
        assert_eq!(field("Seccomp:"), ["2"]);
    }
}

fn orderly_end() {
    let serving = serving();
    let status = serving.machine.status();
    // An idle connection must not hold it.
    let mut idle = HttpClient::connect(serving.listen).unwrap();
    assert_eq!(idle.get("/").unwrap().text(), "a");
    serving.machine.client().shutdown().unwrap();
    for pid in [status.controller.unwrap(), status.proxy.unwrap()] {
        assert!(!lives(pid));
    }
    wait_for("the supervisor's end", || {
        (!lives(status.pid)).then_some(())
    });
    assert_eq!(
        std::fs::read_dir(serving.machine.root.join("run/proxy"))
            .unwrap()
            .count(),
        0
    );
    assert!(!serving.machine.root.join("run/supervise.sock").exists());
    assert!(std::net::TcpStream::connect(serving.listen).is_err());
}

fn upgrade() {
    let serving = serving();
    let before = serving.machine.status();
    kill(before.pid, Signal::HUP);
    wait_for("the one that was executed anew", || {
        let status = serving.machine.status();
        let log = std::fs::read_to_string(serving.machine.root.join("supervise.log")).unwrap();
        (log.contains("executing")
            && log.contains("adopted the proxy")
            && status.pid == before.pid
            && status.proxy == before.proxy
            && status.controller == before.controller
            && status.descriptors == [serving.listen.to_string()])
        .then_some(())
    });
    assert_eq!(get(serving.listen, "/").unwrap().text(), "a");
    kill(before.proxy.unwrap(), Signal::KILL);
    wait_for("the successor", || {
        get(serving.listen, "/")
            .ok()
            .filter(|answer| answer.text() == "a")
    });
}
