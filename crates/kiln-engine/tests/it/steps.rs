use kiln_engine::sandbox::{self, SandboxBind, SandboxExit, SandboxSpec};

use crate::world::World;

pub const TESTS: &[(&str, fn())] = &[
    ("a_step_writes_to_its_upper_folder_only", writes),
    (
        "a_step_that_runs_too_long_or_needs_too_much_is_ended",
        limits,
    ),
    (
        "what_a_killed_bake_leaves_is_removed_by_the_next_step",
        killed,
    ),
];

fn spec(world: &World, name: &str, script: &str) -> SandboxSpec {
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
        binds: Vec::new(),
        memory: None,
        pids: Some(64),
        time_limit: None,
        as_instance: None,
    }
}

fn run(spec: &SandboxSpec) -> (SandboxExit, String) {
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
    wanted.binds = vec![SandboxBind {
        from: given,
        to: "/etc/given".into(),
        writable: false,
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

fn limits() {
    let world = World::new();
    let long = spec(&world, "stopped", "echo begins; sleep 60");
    let begun = std::cell::Cell::new(false);
    let exit = sandbox::run(&long, &|| begun.get(), &mut |_, _| begun.set(true)).unwrap();
    assert_eq!(exit, SandboxExit::Stopped);
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
