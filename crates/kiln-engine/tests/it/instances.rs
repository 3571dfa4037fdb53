use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use kiln_engine::{Engine, EngineOptions, InstanceState, TmpfsSpec};
use kiln_model::{ExitReason, InstanceId, StartFault};

use crate::world::World;

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "an_instance_ends_with_its_exit_code_and_its_output_is_kept",
        exit_code,
    ),
    (
        "the_root_can_not_be_written_and_rights_are_few",
        confinement,
    ),
    (
        "a_tmpfs_is_seeded_from_the_image_with_its_owners",
        seeded_tmpfs,
    ),
    ("out_of_memory_is_told_apart", out_of_memory),
    ("a_fork_bomb_is_bounded", fork_bomb),
    (
        "stop_sends_the_signal_and_waits_for_the_grace_then_kills",
        stop,
    ),
    (
        "the_next_engine_adopts_with_the_same_pid_and_start",
        adoption,
    ),
    ("a_killed_shim_takes_its_instance_along", killed_shim),
    ("starts_that_can_not_heal_say_so", permanent),
    ("an_older_generation_is_refused", stale),
    ("twenty_starts_at_once_leave_nothing", many),
    ("a_changed_layer_is_found_on_its_first_mount", changed_layer),
    ("the_log_of_an_instance_that_is_gone_can_be_read", kept_log),
    (
        "layers_stay_mounted_for_an_instance_that_is_being_started",
        overlap,
    ),
    ("nothing_of_the_environment_is_on_the_disk", environment),
    (
        "a_stop_needs_no_disk_and_can_be_asked_for_again",
        stop_again,
    ),
    ("one_leftover_hides_no_other", leftovers),
    (
        "neither_the_hosts_groups_nor_its_secrets_are_seen_inside",
        hidden,
    ),
];

fn exit_code() {
    let world = World::new();
    let (record, lines) = world.run("code", "echo $GREETING; echo oops >&2; exit 7");
    assert_eq!(record.reason, ExitReason::Exited { code: 7 });
    let mut lines = lines;
    lines.sort();
    assert_eq!(lines, ["hello", "oops"]);
    assert_eq!(
        world.engine.inspect(&InstanceId::new("code")).unwrap(),
        None
    );
}

fn confinement() {
    let world = World::new();
    let script = "id -u; touch /x 2>/dev/null && echo wrote; mount -t tmpfs x /tmp 2>/dev/null && echo mounted; \
        cat /proc/self/status | while read k v; do case $k in CapEff:|CapBnd:|NoNewPrivs:|Seccomp:) echo $k $v;; esac; done; \
        echo 1 > /proc/sys/kernel/core_pattern 2>/dev/null && echo proc; sethostname y 2>/dev/null && echo named; \
        ls /proc | while read p; do case $p in [0-9]*) echo pid $p;; esac; done; echo $$";
    let (record, lines) = world.run("confined", script);
    assert_eq!(record.reason, ExitReason::Exited { code: 0 }, "{lines:?}");
    assert_eq!(lines[0], "1000");
    for wanted in [
        "CapEff: 0000000000000000",
        "CapBnd: 0000000000000000",
        "NoNewPrivs: 1",
        "Seccomp: 2",
        "pid 1",
        "pid 2",
        "2",
    ] {
        assert!(
            lines.iter().any(|line| line == wanted),
            "{wanted} in {lines:?}"
        );
    }
    for forbidden in ["wrote", "mounted", "proc", "named"] {
        assert!(
            !lines.iter().any(|line| line == forbidden),
            "{forbidden} in {lines:?}"
        );
    }
}

fn seeded_tmpfs() {
    let world = World::new();
    let mut spec = world.spec("seeded", "cat /var/cache/app/seed; echo; ls -ln /var/cache/app/seed; echo new > /var/cache/app/seed && cat /var/cache/app/seed; ls -d /fresh/dir");
    spec.tmpfs = vec![
        TmpfsSpec {
            path: "/var/cache/app".into(),
            size: 1 << 20,
        },
        TmpfsSpec {
            path: "/fresh/dir".into(),
            size: 1 << 20,
        },
    ];
    world.engine.start(&spec).unwrap();
    let record = world
        .engine
        .wait(&spec.id, Some(Duration::from_secs(10)))
        .unwrap()
        .unwrap();
    let said = record.last_lines.join("\n");
    assert!(
        said.starts_with("seeded\n") && said.contains("1000     1000"),
        "{said}"
    );
    assert!(said.ends_with("new\n/fresh/dir"), "{said}");
}

fn out_of_memory() {
    let world = World::new();
    let mut spec = world.spec("oom", "tail /dev/zero");
    spec.memory = Some(16 << 20);
    world.engine.start(&spec).unwrap();
    let record = world
        .engine
        .wait(&spec.id, Some(Duration::from_secs(30)))
        .unwrap()
        .unwrap();
    assert_eq!(
        record.reason,
        ExitReason::OutOfMemory {
            limit: Some(16 << 20)
        }
    );
}

fn fork_bomb() {
    let world = World::new();
    let mut spec = world.spec("bomb", "f() { f | f & }; f; sleep 1; exit 3");
    spec.pids = Some(30);
    world.engine.start(&spec).unwrap();
    let record = world
        .engine
        .wait(&spec.id, Some(Duration::from_secs(30)))
        .unwrap()
        .unwrap();
    assert!(
        matches!(record.reason, ExitReason::Exited { .. }),
        "{record:?}"
    );
    world.engine.remove(&spec.id).unwrap();
}

fn stop() {
    let world = World::new();
    let graceful = world.spec(
        "graceful",
        "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done",
    );
    let stubborn = world.spec(
        "stubborn",
        "trap '' TERM; echo up; while :; do sleep 0.05; done",
    );
    for spec in [&graceful, &stubborn] {
        world.engine.start(spec).unwrap();
        until("it is up", || {
            let (lines, _) =
                kiln_engine::logs::Reader::tail(&world.engine.log_path(&spec.id), 5).unwrap();
            lines.iter().any(|line| line.text == "up")
        });
    }
    let record = world
        .engine
        .stop(&graceful.id, Duration::from_secs(10))
        .unwrap();
    assert_eq!(record.reason, ExitReason::Exited { code: 5 });
    assert!(record.last_lines.contains(&"bye".to_owned()));
    let began = Instant::now();
    let record = world
        .engine
        .stop(&stubborn.id, Duration::from_millis(300))
        .unwrap();
    assert_eq!(record.reason, ExitReason::Signalled { signal: 9 });
    assert!(began.elapsed() >= Duration::from_millis(300));
}

fn adoption() {
    let world = World::new();
    let spec = world.spec("adopted", "while :; do sleep 0.05; done");
    let started = world.engine.start(&spec).unwrap();
    let next = Engine::open(EngineOptions {
        root: world.root.path().to_owned(),
    })
    .unwrap();
    assert_eq!(
        next.list().unwrap(),
        [(spec.id.clone(), InstanceState::Running(started.clone()))]
    );
    assert_eq!(
        next.start(&spec).unwrap(),
        started,
        "a start of what runs tells what runs"
    );
    assert!(started.address.is_some());
}

fn killed_shim() {
    let world = World::new();
    let spec = world.spec("orphan", "while :; do sleep 0.05; done");
    let started = world.engine.start(&spec).unwrap();
    let running = world.root.path().join("instances/orphan/running.json");
    let text = std::fs::read_to_string(running).unwrap();
    let shim: i32 = text
        .split("\"shim\":")
        .nth(1)
        .unwrap()
        .split(',')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let shim = rustix::process::Pid::from_raw(shim).unwrap();
    rustix::process::kill_process(shim, rustix::process::Signal::KILL).unwrap();
    let record = world
        .engine
        .wait(&spec.id, Some(Duration::from_secs(10)))
        .unwrap()
        .unwrap();
    assert_eq!(record.reason, ExitReason::Lost);
    until("the application is gone", || {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", started.pid)).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
    world.engine.remove(&spec.id).unwrap();
}

fn permanent() {
    let world = World::new();
    let base = world.spec("never", "true");
    type Break = fn(&mut kiln_engine::InstanceSpec);
    let cases: [(StartFault, &str, Break); 11] = [
        (StartFault::CommandNotFound, "/bin/nothing", |spec| {
            spec.argv = vec!["/bin/nothing".into()]
        }),
        (StartFault::CommandNotFound, "PATH", |spec| {
            spec.argv = vec!["nothing".into()]
        }),
        (StartFault::CommandNotExecutable, "executable", |spec| {
            spec.argv = vec!["/bin/notexec".into()]
        }),
        (StartFault::User, "no user `ghost`", |spec| {
            spec.user = "ghost".into()
        }),
        (StartFault::WorkingFolder, "/no/where", |spec| {
            spec.cwd = "/no/where".into()
        }),
        (StartFault::LimitTooSmall, "too small", |spec| {
            spec.memory = Some(4096)
        }),
        (StartFault::Release, "needs a folder", |spec| {
            spec.tmpfs = vec![TmpfsSpec {
                path: "/etc/passwd".into(),
                size: 4096,
            }];
        }),
        (StartFault::Release, "leads to /proc", |spec| {
            spec.tmpfs = vec![TmpfsSpec {
                path: "/to-proc".into(),
                size: 4096,
            }];
        }),
        (StartFault::Release, "no signal", |spec| {
            spec.stop_signal = "SIGNOTHING".into()
        }),
        (
            StartFault::ArgumentsTooLarge,
            "the variable `LARGE`",
            |spec| {
                spec.env.push(("LARGE".into(), "x".repeat(200_000)));
            },
        ),
        (
            StartFault::ArgumentsTooLarge,
            "make `env` smaller",
            |spec| {
                let variable = |n| (format!("V{n}"), "x".repeat(100_000));
                spec.env = (0..100).map(variable).collect();
            },
        ),
    ];
    for (index, (fault, words, change)) in cases.into_iter().enumerate() {
        let mut spec = base.clone();
        spec.id = InstanceId::new(format!("never-{index}"));
        change(&mut spec);
        let error = world.engine.start(&spec).expect_err(words);
        assert!(
            error.fault() == fault && error.is_permanent() && error.to_string().contains(words),
            "{fault:?} {words}: {error:?}"
        );
        world.engine.remove(&spec.id).unwrap();
    }
}

fn stale() {
    let world = World::new();
    let mut spec = world.spec("aged", "sleep 60");
    spec.generation = 5;
    world.engine.start(&spec).unwrap();
    spec.generation = 4;
    let error = world.engine.start(&spec).unwrap_err();
    assert!(error.to_string().contains("generation 4"), "{error}");
}

fn many() {
    let world = World::new();
    std::thread::scope(|scope| {
        for index in 0..20 {
            let world = &world;
            scope.spawn(move || {
                let (record, lines) = world.run(&format!("many-{index}"), "echo done");
                assert_eq!(
                    (record.reason, lines),
                    (ExitReason::Exited { code: 0 }, vec!["done".to_owned()])
                );
            });
        }
    });
    assert_eq!(world.engine.list().unwrap(), []);
    let left = std::fs::read_dir("/sys/class/net")
        .unwrap()
        .filter_map(Result::ok)
        .filter(|entry| {
            std::fs::read_to_string(entry.path().join("master/ifindex")).is_ok_and(|_| {
                entry
                    .path()
                    .join("master")
                    .canonicalize()
                    .is_ok_and(|m| m.ends_with(bridge(&world)))
            })
        });
    assert_eq!(left.count(), 0);
}

fn bridge(world: &World) -> String {
    let digest = kiln_model::Digest::of(world.root.path().as_os_str().as_encoded_bytes());
    format!("kiln{}", &digest.hex()[..8])
}

fn changed_layer() {
    let world = World::new();
    let copy = world.root.path().join("copy.erofs");
    std::fs::copy(&world.layer.path, &copy).unwrap();
    let mut bytes = std::fs::read(&copy).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let mut spec = world.spec("changed", "true");
    spec.layers[0].path = copy;
    let error = world.engine.start(&spec).unwrap_err();
    assert!(
        error.is_permanent() && error.to_string().contains("was changed"),
        "{error}"
    );
}

fn kept_log() {
    let world = World::new();
    world.run("said", "echo last words");
    let path = world.engine.log_path(&InstanceId::new("said"));
    let (lines, _) = kiln_engine::logs::Reader::tail(&path, 10).unwrap();
    assert_eq!(lines[0].text, "last words");
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what} within ten seconds");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All that holds a layer's mount is the instance's record.
fn overlap() {
    let world = World::new();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                world.engine.unmount_unused().unwrap();
            }
        });
        let failed = (0..20).find_map(|index| {
            let spec = world.spec(&format!("overlap-{index}"), "true");
            let failed = world.engine.start(&spec).err();
            world.engine.remove(&spec.id).unwrap();
            failed
        });
        stop.store(true, Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
}

fn environment() {
    let world = World::new();
    let mut spec = world.spec("secretive", "echo $PASSWORD; sleep 600");
    spec.env.push(("PASSWORD".into(), "hunter2".into()));
    world.engine.start(&spec).unwrap();
    let log = world.engine.log_path(&spec.id);
    until("it has said it", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("hunter2"))
    });
    let folder = world.root.path().join("instances/secretive");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path != log {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("hunter2"), "{}: {text}", path.display());
        }
    }
}

fn stop_again() {
    let world = World::new();
    let spec = world.spec(
        "twice",
        "trap '' TERM; echo up; while :; do sleep 0.05; done",
    );
    world.engine.start(&spec).unwrap();
    let log = world.engine.log_path(&spec.id);
    until("it is up", || {
        std::fs::read_to_string(&log).is_ok_and(|text| text.contains("up"))
    });
    // What a full disk does, and more: no file of this name can be written.
    std::fs::create_dir(world.root.path().join("instances/twice/grace")).unwrap();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            world
                .engine
                .stop(&spec.id, Duration::from_secs(600))
                .unwrap()
        });
        let second = world.engine.stop(&spec.id, Duration::from_millis(300));
        let killed = ExitReason::Signalled { signal: 9 };
        assert_eq!(second.unwrap().reason, killed);
        assert_eq!(first.join().unwrap().reason, killed);
    });
    let took = began.elapsed();
    assert!(
        took >= Duration::from_millis(300) && took < Duration::from_secs(9),
        "{took:?}"
    );
    // And once it has ended.
    let record = world.engine.stop(&spec.id, Duration::ZERO).unwrap();
    assert_eq!(record.reason, ExitReason::Signalled { signal: 9 });
}

fn leftovers() {
    let world = World::new();
    let [stuck, other] = ["a-stuck", "b-other"].map(InstanceId::new);
    for id in [&stuck, &other] {
        let spec = world.spec(id.as_str(), "sleep 600");
        world.engine.start(&spec).unwrap();
    }
    // A mount in it: the folder can't be removed.
    let mount = world.root.path().join("instances/a-stuck/mount");
    std::fs::create_dir(&mount).unwrap();
    rustix::mount::mount(
        "none",
        &mount,
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        None,
    )
    .unwrap();
    let left = world.engine.sweep(&Default::default());
    rustix::mount::unmount(&mount, rustix::mount::UnmountFlags::empty()).unwrap();
    let left = left.unwrap();
    let ids: Vec<_> = left.iter().map(|(id, _)| id).collect();
    assert_eq!(ids, [&stuck], "{left:?}");
    assert_eq!(world.engine.inspect(&other).unwrap(), None);
    assert!(world.engine.sweep(&Default::default()).unwrap().is_empty());
    assert_eq!(world.engine.list().unwrap(), []);
}

fn hidden() {
    let world = World::new();
    let mut spec = world.spec(
        "hidden",
        "cat /proc/self/cgroup; for file in interrupts kpageflags kpagecount slabinfo vmallocinfo; do \
         echo \"$file $(cat /proc/$file 2>/dev/null | dd bs=1 count=1 2>/dev/null)\"; done",
    );
    spec.user = String::new();
    world.engine.start(&spec).unwrap();
    let record = world.engine.wait(&spec.id, None).unwrap().unwrap();
    let (groups, files): (Vec<_>, Vec<_>) = record
        .last_lines
        .iter()
        .partition(|line| line.contains(':'));
    assert!(
        !groups.is_empty() && files.len() == 5,
        "{:?}",
        record.last_lines
    );
    // Of the hierarchies that it is in a group of: the others are the host's business.
    for controller in ["memory", "cpu", "pids"] {
        let line = groups.iter().find(|line| {
            line.split(':')
                .nth(1)
                .is_some_and(|names| names.split(',').any(|name| name == controller))
        });
        let line = line
            .or(groups.iter().find(|line| line.starts_with("0::")))
            .unwrap();
        assert!(line.ends_with(":/"), "{groups:?}");
    }
    for file in files {
        assert!(file.ends_with(' '), "{file}");
    }
}
