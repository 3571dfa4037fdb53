use kiln_engine::sandbox::{self, SandboxExit, SandboxNetwork, SandboxSpec};
use kiln_engine::{MountSource, SandboxMount};

use crate::world::World;

pub(crate) const TESTS: &[(&str, fn())] = &[
    ("a_step_writes_to_its_upper_folder_only", writes),
    (
        "a_step_that_runs_too_long_or_needs_too_much_is_ended",
        limits,
    ),
    ("a_step_has_what_is_mounted_for_it", mounts),
    ("a_privileged_step_mounts_and_another_does_not", privileged),
    (
        "what_a_killed_bake_leaves_is_removed_by_the_next_step",
        killed,
    ),
];

pub(crate) fn spec(world: &World, name: &str, script: &str) -> SandboxSpec {
    let folder = world.root.path().join(name);
    std::fs::create_dir_all(folder.join("upper")).unwrap();
    SandboxSpec {
        lowers: vec![world.layer.path.clone()],
        upper: folder.join("upper"),
        work: folder.join("work"),
        argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
        hostname: "bake".to_owned(),
        mounts: Vec::new(),
        network: SandboxNetwork::None,
        privileged: false,
        memory: None,
        pids: Some(64),
        time_limit: None,
        as_instance: None,
    }
}

pub(crate) fn run(spec: &SandboxSpec) -> (SandboxExit, String) {
    let mut said = Vec::new();
    let exit = sandbox::run(spec, &|| false, &mut |_, bytes| {
        said.extend_from_slice(bytes)
    })
    .unwrap();
    (exit, String::from_utf8(said).unwrap())
}

fn writes() {
    let world = World::new();
    let script = "echo hi > /data/new && chown 1000:1000 /data/new && hostname && ls /sys/class/net && ip route; exit 4";
    let mut wanted = spec(&world, "step", script);
    let given = world.root.path().join("given");
    std::fs::write(&given, "given").unwrap();
    wanted.mounts = vec![SandboxMount {
        to: "/etc/given".into(),
        writable: false,
        source: MountSource::Folder {
            root: given,
            inside: "".into(),
        },
    }];
    let (exit, said) = run(&wanted);
    assert_eq!(
        (exit, said.as_str()),
        (SandboxExit::Exited(4), "bake\nlo\n")
    );
    use std::os::unix::fs::MetadataExt;
    let new = std::fs::metadata(wanted.upper.join("data/new")).unwrap();
    assert_eq!((new.uid(), new.gid(), new.len()), (1000, 1000, 3));
}

fn mounts() {
    let world = World::new();
    let given = world.root.path().join("given");
    std::fs::create_dir_all(given.join("sub")).unwrap();
    std::fs::write(given.join("sub/file"), "given").unwrap();
    // Inside it is the container's, whatever the host has there.
    std::os::unix::fs::symlink("/data", given.join("link")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", given.join("out")).unwrap();
    let folder = |inside: &str| MountSource::Folder {
        root: given.clone(),
        inside: inside.into(),
    };
    let mount = |to: &str, writable, source| SandboxMount {
        to: to.into(),
        writable,
        source,
    };
    let script = "cat /a/sub/file /one /sec; ls -ln /sec; echo x > /a/no; echo x > /sec; echo hi > /w/new; \
                  cat /w/var/cache/app/seed; echo t > /a/deep/t && cat /a/deep/t; echo l > /data/in/l; \
                  mount | while read a b c d e f; do case $c in /t) echo $e $f;; esac; done";
    let mut wanted = spec(&world, "mounts", script);
    let scratch = world.root.path().join("scratch");
    std::fs::create_dir_all(given.join("deep")).unwrap();
    wanted.mounts = vec![
        mount("/a/deep", true, MountSource::Tmpfs { size: None }),
        mount("/a", false, folder("")),
        mount("/one", false, folder("sub/file")),
        mount(
            "/w",
            true,
            MountSource::Layers {
                layers: vec![world.layer.path.clone()],
                inside: "".into(),
                scratch: scratch.clone(),
            },
        ),
        mount(
            "/sec",
            true,
            MountSource::Secret {
                content: b"hidden".to_vec(),
                mode: 0o440,
                uid: 7,
                gid: 8,
            },
        ),
        mount("/t", true, MountSource::Tmpfs { size: Some(65536) }),
        mount("/data/in", true, MountSource::Tmpfs { size: None }),
    ];
    let (exit, said) = run(&wanted);
    assert_eq!(exit, SandboxExit::Exited(0), "{said}");
    for expected in [
        "givengivenhidden",
        "-r--r-----    1 7        8                6",
        "can't create /a/no: Read-only",
        "can't create /sec: Read-only",
        "seeded",
        "t\n",
        "size=64k",
    ] {
        assert!(said.contains(expected), "{expected}: {said}");
    }
    assert_eq!(
        std::fs::read_to_string(scratch.join("upper/new")).unwrap(),
        "hi\n"
    );
    assert!(!wanted.upper.join("data/in/l").exists());
    // A link of what is mounted does not lead to the host's file.
    let mut wanted = spec(&world, "link", "cat /one");
    wanted.mounts = vec![mount("/one", false, folder("out"))];
    let error = sandbox::run(&wanted, &|| false, &mut |_, _| {}).unwrap_err();
    assert!(error.to_string().contains("No such file"), "{error}");
}

fn privileged() {
    let world = World::new();
    let script = "mkdir -p /m && mount -t tmpfs none /m";
    let (exit, said) = run(&spec(&world, "sealed", script));
    assert_ne!(exit, SandboxExit::Exited(0), "{said}");
    let mut wanted = spec(&world, "open", script);
    wanted.privileged = true;
    let (exit, said) = run(&wanted);
    assert_eq!(exit, SandboxExit::Exited(0), "{said}");
}

fn limits() {
    let world = World::new();
    let long = spec(&world, "stopped", "echo begins; sleep 60");
    let begun = std::cell::Cell::new(false);
    let exit = sandbox::run(&long, &|| begun.get(), &mut |_, _| begun.set(true)).unwrap();
    assert_eq!(exit, SandboxExit::Stopped);
    // Its output is closed long before.
    let mut silent = spec(&world, "silent", "exec >&- 2>&-; sleep 60");
    silent.time_limit = Some(20_000);
    let asked = std::cell::Cell::new(0);
    let stop = || asked.replace(asked.get() + 1) > 3;
    let exit = sandbox::run(&silent, &stop, &mut |_, _| {}).unwrap();
    assert_eq!(exit, SandboxExit::Stopped);
    let mut forking = spec(&world, "forking", "f() { f | f; }; f");
    forking.pids = Some(32);
    let ended = sandbox::run_to_end(&forking, |_| {}, &|| false, &mut |_, _| {}).unwrap();
    assert!(ended.out_of_processes, "{ended:?}");
    assert_ne!(ended.exit, SandboxExit::Exited(0));
    // This one never gives up.
    let mut bomb = spec(
        &world,
        "bomb",
        "while :; do (sleep 1000 & sleep 1000 &) 2>/dev/null; done",
    );
    bomb.pids = Some(16);
    let ended = sandbox::run_to_end(&bomb, |_| {}, &|| false, &mut |_, _| {}).unwrap();
    assert!(ended.out_of_processes, "{ended:?}");
    assert_ne!(ended.exit, SandboxExit::Exited(0));
    let mut slow = spec(&world, "slow", "sleep 60");
    slow.time_limit = Some(300);
    assert_eq!(run(&slow).0, SandboxExit::TimedOut);
    let mut hungry = spec(&world, "hungry", "tail /dev/zero");
    hungry.memory = Some(16 << 20);
    assert_eq!(run(&hungry).0, SandboxExit::OutOfMemory);
}

fn killed() {
    let world = World::new();
    let wanted = spec(&world, "killed", "echo begins; sleep 100");
    let mut holder = None;
    let ended = sandbox::run(&wanted, &|| false, &mut |_, _| {
        let pid = holder_of(&wanted.work).unwrap();
        rustix::process::kill_process(
            rustix::process::Pid::from_raw(pid).unwrap(),
            rustix::process::Signal::KILL,
        )
        .unwrap();
        holder = Some(pid);
    });
    assert!(ended.is_err(), "{ended:?}");
    let group = format!("kiln-step-{}", holder.unwrap());
    assert!(!groups(&group).is_empty(), "{group} is left by the kernel");
    run(&spec(&world, "next", "true"));
    assert_eq!(groups(&group), Vec::<std::path::PathBuf>::new());
}

/// The process that holds the step whose work folder this is.
fn holder_of(work: &std::path::Path) -> Option<i32> {
    let wanted = work.to_str().unwrap();
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let arguments = std::fs::read_to_string(entry.path().join("cmdline")).ok()?;
            let is_holder = arguments.contains("\0sandbox\0") && arguments.contains(wanted);
            is_holder.then_some(pid)
        })
}

/// In whichever hierarchies.
fn groups(name: &str) -> Vec<std::path::PathBuf> {
    let top = std::path::Path::new("/sys/fs/cgroup");
    let below = std::fs::read_dir(top).unwrap().flatten().map(|e| e.path());
    std::iter::once(top.to_owned())
        .chain(below)
        .map(|folder| folder.join(name))
        .filter(|path| path.exists())
        .collect()
}
