//! What holds whatever happens: the same inputs are the same image anywhere, and a bake that was killed leaves nothing wrong.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kiln_oci::Store;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::world::{World, processes, text};

const DOCKERFILE: &str = "FROM debian:bookworm AS build\n\
    USER root\n\
    RUN mkdir /out && for i in 1 2 3 4 5 6 7 8; do date -d @$i -u > /out/$i; done\n\
    FROM debian:bookworm\n\
    USER root\n\
    COPY --from=build /out /srv/out\n\
    COPY app /srv/app\n\
    RUN { hostname; id -un; id -gn; pwd; env | sort; cat /srv/out/*; ls /srv; } > /srv/seen; touch /srv/touched\n";
/// As the shared world's, with steps that leave files behind.
const STEPS: &str = "  run = [\"cp -r /srv /opt/copy; env | sort > /opt/env; ls /opt/copy > /opt/list\", \"id > /opt/id; locale > /opt/locale 2>&1 || true\"]\n";

fn definition() -> String {
    crate::world::DEFINITION.replace("  run_as = \"app\"\n", STEPS)
}

impl World {
    /// A bake of the definition, and one of the Dockerfile on it.
    fn both(&self, command: impl Fn(&[&str]) -> Command) -> [String; 2] {
        let digest = |output: Output| -> (String, String) {
            let answer: serde_json::Value =
                serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
                    panic!("{}", String::from_utf8_lossy(&output.stderr));
                });
            let image = &answer["images"][0];
            let text = |name: &str| image[name].as_str().unwrap().to_owned();
            (text("digest"), text("tag"))
        };
        let (debian, tag) = digest(command(&["bake", "--json"]).output().unwrap());
        let base = format!("debian:bookworm={tag}");
        let (docker, _) = digest(
            command(&[
                "bake",
                "--dockerfile",
                "Dockerfile",
                "--tag",
                &format!("d:{}", std::process::id()),
                "--base",
                &base,
                "--json",
                ".",
            ])
            .output()
            .unwrap(),
        );
        [debian, docker]
    }

    fn set_up(&self) {
        self.write("kiln.hcl", &definition());
        self.write("Dockerfile", DOCKERFILE);
        self.write(".dockerignore", ".git\n");
    }

    /// Nothing is baked, but the lock and its packages are there.
    fn with_packages(from: &World) -> Self {
        let world = World::files();
        world.set_up();
        world.take_packages(from);
        world
    }

    fn take_packages(&self, from: &World) {
        let lock = std::fs::read_to_string(from.path("kiln.lock")).unwrap();
        self.write("kiln.lock", &lock);
        let (old, new) = (
            Store::open(&from.root()).unwrap(),
            Store::open(&self.root()).unwrap(),
        );
        for word in lock.split('"').filter(|word| word.starts_with("sha256:")) {
            let digest = word.parse().unwrap();
            if old.has(&digest) {
                new.put_file(&old.blob_path(&digest)).unwrap();
            }
        }
    }
}

#[test]
fn the_same_inputs_are_the_same_image_on_another_path_for_another_user_with_other_cores_and_without_a_cache()
 {
    let first = World::new();
    first.set_up();
    let wanted = first.both(|arguments| first.command(arguments));

    // Another folder, whose files came in another order, with another umask, user, time zone, language and one processor.
    let second = World::with_packages(&first);
    for name in ["app/ready", "app/index.html"] {
        let text = std::fs::read(second.path(name)).unwrap();
        std::fs::remove_file(second.path(name)).unwrap();
        std::fs::write(second.path(name), text).unwrap();
    }
    let found = second.both(|arguments| {
        let kiln = second.command(arguments);
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "umask 077; exec /usr/bin/taskset -c 0 \"$0\" \"$@\""])
            .arg(kiln.get_program())
            .args(kiln.get_args())
            .current_dir(kiln.get_current_dir().unwrap())
            .env_clear()
            .envs(
                kiln.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("TZ", "America/St_Johns")
            .env("LANG", "tr_TR.UTF-8")
            .env("USER", "other")
            .env("HOME", "/nonexistent")
            .env("SOURCE_DATE_EPOCH", "1");
        command
    });
    assert_eq!(found, wanted);
    assert_eq!(second.left(), Default::default());

    // And where all that was baked was purged.
    std::fs::remove_dir_all(second.root().join("store/tags")).unwrap();
    second.succeed(&["images", "prune"]);
    let images = second.json(&["images", "--json"]);
    assert_eq!(images["images"], serde_json::json!([]));
    second.take_packages(&first);
    assert_eq!(second.both(|arguments| second.command(arguments)), wanted);
}

/// At whatever point there is no more room: what was done before counts, and is right.
#[test]
fn a_disk_that_gets_full_and_free_again_gives_the_same_image() {
    let first = World::new();
    first.set_up();
    let wanted = first.both(|arguments| first.command(arguments));

    let second = World::files();
    second.mount(&["-t", "tmpfs", "-o", "size=2g", "kiln-test"]);
    second.set_up();
    second.take_packages(&first);
    let used = || {
        let there = rustix::fs::statvfs(second.root()).unwrap();
        (there.f_blocks - there.f_bfree) * there.f_frsize
    };
    let packages = used();
    let mut refused = 0;
    for more in [1, 24, 60, 100] {
        let size = format!("remount,size={}", packages + (more << 20));
        second.mount(&["-o", &size]);
        let output = second.kiln(&["bake", "--json"]);
        if output.status.success() {
            break;
        }
        refused += 1;
        let said = text(&output.stderr);
        assert!(
            said.contains("o space left") && !said.contains("panicked"),
            "{said}"
        );
        assert_eq!(second.left(), Default::default());
    }
    assert!(refused > 1, "it was never full");
    second.mount(&["-o", "remount,size=2g"]);
    assert_eq!(second.both(|arguments| second.command(arguments)), wanted);
}

/// Each time a little later, until it comes through.
#[test]
fn a_bake_that_is_killed_at_any_point_leaves_nothing_wrong() {
    let source = World::new();
    source.set_up();
    let wanted = source.both(|arguments| source.command(arguments));
    let world = World::with_packages(&source);
    let mut tag = None;
    for dockerfile in [false, true] {
        let arguments: Vec<String> = if dockerfile {
            let base = format!("debian:bookworm={}", tag.as_deref().unwrap_or_default());
            [
                "bake",
                "--dockerfile",
                "Dockerfile",
                "--tag",
                "d:1",
                "--base",
                &base,
                "--no-cache",
                ".",
            ]
            .map(str::to_owned)
            .to_vec()
        } else {
            vec!["bake".to_owned()]
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let mut delay = Duration::from_millis(20);
        let mut kills = 0;
        loop {
            let mut child = world
                .command(&arguments)
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            let until = Instant::now() + delay;
            let ended = loop {
                if let Some(status) = child.try_wait().unwrap() {
                    break Some(status);
                }
                if Instant::now() >= until {
                    break None;
                }
                std::thread::sleep(Duration::from_millis(5));
            };
            if let Some(status) = ended {
                let output = child.wait_with_output().unwrap();
                assert!(status.success(), "{}", text(&output.stderr));
                break;
            }
            // The process alone, and now and then all of them.
            let pid = Pid::from_child(&child);
            let killed = if kills % 3 == 2 {
                kill_process_group(pid, Signal::KILL)
            } else {
                kill_process(pid, Signal::KILL)
            };
            killed.unwrap();
            child.wait().unwrap();
            kills += 1;
            crate::world::until("the steps are gone", || processes(&world.root()).is_empty());
            delay = delay * 3 / 2;
        }
        assert!(kills > 3, "it was quicker than anybody can be: {kills}");
        if !dockerfile {
            let answer = world.json(&["bake", "--json"]);
            tag = Some(answer["images"][0]["tag"].as_str().unwrap().to_owned());
        }
    }
    let store = Store::open(&world.root()).unwrap();
    let found =
        [tag.unwrap(), "d:1".to_owned()].map(|tag| store.resolve(&tag).unwrap().to_string());
    assert_eq!(found, wanted);
    for entry in std::fs::read_dir(world.root().join("store/blobs/sha256")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let digest = format!("sha256:{name}").parse().unwrap();
        store.verify_blob(&digest).unwrap();
    }
    drop(store);
    // What the killed ones left is swept by those that follow; what is on its way into the store, when it is old enough.
    world.succeed(&["bake"]);
    let is_young = |left: &String| !left.contains('/') && !left.starts_with("step-");
    let left: Vec<String> = world
        .left()
        .into_iter()
        .filter(|left| !is_young(left))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

/// In a few seconds and with the reason, while the machine goes on.
#[test]
fn a_step_that_forks_forever_or_fills_the_disk_is_ended() {
    let world = World::small("300m");
    world.set_up();
    let tag = text(&world.kiln(&["bake", "--json"]).stdout);
    let answer: serde_json::Value = serde_json::from_str(&tag).unwrap();
    let base = format!(
        "debian:bookworm={}",
        answer["images"][0]["tag"].as_str().unwrap()
    );
    for (run, why) in [
        (
            "while true; do sleep 1000 & done",
            "4096 processes that a step may have",
        ),
        (
            "dd if=/dev/zero of=/fill bs=1M; sleep 300",
            "filled the disk of",
        ),
        (
            "exec >/dev/null 2>&1; for i in $(seq 300); do dd if=/dev/zero of=/fill$i bs=1M count=4; done; sleep 300",
            "filled the disk of",
        ),
    ] {
        world.write(
            "Dockerfile",
            &format!("FROM debian:bookworm\nUSER root\nRUN {run}\n"),
        );
        let said = world.fail(
            &[
                "bake",
                "--dockerfile",
                "Dockerfile",
                "--tag",
                "never:1",
                "--base",
                &base,
                "--network",
                "none",
                ".",
            ],
            1,
        );
        assert!(
            said.contains(why) && said.contains("Dockerfile:3:1"),
            "{run}: {said}"
        );
        assert_eq!(world.left(), Default::default());
    }
}
