//! `test` blocks: what passes, what fails and what is left then.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_bake::{BakeError, Baked, MEDIA_IN_TOTO};
use kiln_model::{CommandCheck, FileCheck, HttpCheck, ImageSpec, TestSpec, TextCheck, Tmpfs};

use crate::world::{World, copy, image, told, user};

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "an_images_tests_see_it_as_it_will_run_and_are_run_once",
        passing,
    ),
    (
        "an_images_tests_that_fail_are_all_told_and_leave_no_tag",
        failing,
    ),
    (
        "an_images_tests_tell_a_server_that_ends_or_that_nobody_reaches",
        servers,
    ),
];

/// A server of a few lines: the essential packages have perl.
const SERVER: &str = r#"
use strict; use IO::Socket::INET; $| = 1;
my $host = $ENV{HOST} // '0.0.0.0';
print "starts as $<\n";
exit 7 if $host eq 'nowhere';
sleep 1;
my $server = IO::Socket::INET->new(LocalAddr => $host, LocalPort => $ENV{PORT}, Listen => 5, ReuseAddr => 1) or die $!;
while (my $client = $server->accept) {
    my $line = <$client>;
    while (my $header = <$client>) { last if $header =~ /^\r?\n$/ }
    my $status = $line =~ m{^GET /health } ? '200 OK' : '404 Not Found';
    print $client "HTTP/1.1 $status\r\nX-Kind: test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nyes\r\n0\r\n\r\n";
}
"#;

pub(crate) fn test(name: &str) -> TestSpec {
    TestSpec {
        name: name.into(),
        timeout: Duration::from_secs(30),
        env: BTreeMap::new(),
        port: Some(3000),
        tmpfs: BTreeMap::new(),
        commands: Vec::new(),
        http: Vec::new(),
        ports: Vec::new(),
        files: BTreeMap::new(),
        present: Vec::new(),
        absent: Vec::new(),
        packages: Vec::new(),
        packages_absent: Vec::new(),
    }
}

fn command(line: &str) -> CommandCheck {
    CommandCheck {
        argv: ["/bin/sh", "-c", line].map(str::to_owned).to_vec(),
        user: None,
        exit: 0,
        stdout: TextCheck::default(),
        stderr: TextCheck::default(),
    }
}

fn http(path: &str, status: u16) -> HttpCheck {
    HttpCheck {
        path: path.into(),
        port: None,
        status,
        body: TextCheck::default(),
        headers: BTreeMap::new(),
    }
}

fn equals(text: &str) -> TextCheck {
    TextCheck {
        equals: Some(text.into()),
        ..TextCheck::default()
    }
}

fn server(world: &World, version: &str) -> ImageSpec {
    world.write("server.pl", SERVER);
    let mut wanted = image();
    wanted.version = version.into();
    wanted.users = vec![user("app", 1000)];
    wanted.copies = vec![copy("server.pl", "/srv/server.pl", Some("app"))];
    wanted.run_as = Some("app".into());
    wanted.workdir = Some("/srv".into());
    wanted.env.insert("LEVEL".into(), "info".into());
    wanted.cmd = ["perl", "server.pl"].map(str::to_owned).to_vec();
    wanted
}

fn bake(world: &World, wanted: &ImageSpec) -> Baked {
    world
        .bake(wanted)
        .unwrap_or_else(|error| panic!("{}", told(&error)))
}

fn passing() {
    let world = World::new();
    let mut wanted = server(&world, "passing");
    let mut answers = test("answers");
    let mut health = http("/health", 200);
    health.body = equals("yes");
    health.headers.insert("x-kind".into(), "test".into());
    answers.http = vec![health, http("/nothing", 404)];
    answers.ports = vec![3000];
    let mut runs = test("runs");
    runs.env.insert("EXTRA".into(), "more".into());
    let size = 1 << 20;
    runs.tmpfs.insert("/var/cache".into(), Tmpfs::of(size));
    let mut says = command("id -un; pwd; echo $LEVEL $EXTRA $PORT >&2; exit 3");
    says.exit = 3;
    says.stdout = equals("app\n/srv");
    says.stderr = equals("info more 3000");
    let mut root = command("id -u");
    root.user = Some("root".into());
    root.stdout = equals("0");
    // What an instance may write to, and what it may not; nothing leads outward, and there are no rights.
    let mut sealed = command(
        "touch /tmp/x /run/x /var/cache/x && ! touch /srv/x && ! touch /etc/x && ls /sys/class/net && grep CapEff /proc/self/status",
    );
    sealed.user = Some("root".into());
    sealed.stdout = equals("lo\nCapEff:\t0000000000000000");
    runs.commands = vec![says, root, sealed];
    let mut holds = test("holds");
    let check = FileCheck {
        owner: Some("app".into()),
        group: Some("1000".into()),
        mode: Some(0o644),
        content: TextCheck {
            contains: vec!["IO::Socket".into()],
            matches: vec!["(?m)^while".into()],
            equals: None,
        },
    };
    holds.files.insert("/srv/server.pl".into(), check);
    holds.present = vec!["/bin/sh".into()];
    holds.absent = vec!["/usr/sbin/sshd".into()];
    holds.packages = vec!["dash".into()];
    holds.packages_absent = vec!["openssh-server".into()];
    wanted.tests = vec![answers, runs, holds];
    let first = bake(&world, &wanted);
    let reports = |baked: &Baked| -> Vec<(String, bool)> {
        let tests = baked
            .steps
            .iter()
            .filter(|step| step.name.starts_with("test "));
        tests.map(|step| (step.name.clone(), step.cached)).collect()
    };
    let expected = |cached: [bool; 3]| -> Vec<(String, bool)> {
        let names = ["test \"answers\"", "test \"runs\"", "test \"holds\""];
        names.map(str::to_owned).into_iter().zip(cached).collect()
    };
    assert_eq!(reports(&first), expected([false; 3]));
    // A test is no part of the image, and one that passed is not run again.
    wanted.tests[2].absent.push("/nothing".into());
    let again = bake(&world, &wanted);
    assert_eq!(reports(&again), expected([true, true, false]));
    assert_eq!(again.digest, first.digest);
    let referrers = world.store.referrers(&first.digest).unwrap();
    let statement = referrers
        .iter()
        .find(|referrer| referrer.artifact_type == MEDIA_IN_TOTO)
        .unwrap();
    let statement = world.store.referrer_document(&statement.digest).unwrap();
    let statement: serde_json::Value = serde_json::from_slice(&statement).unwrap();
    let tests = &statement["predicate"]["buildDefinition"]["internalParameters"]["tests"];
    let names: Vec<_> = tests
        .as_array()
        .unwrap()
        .iter()
        .map(|test| &test["name"])
        .collect();
    assert_eq!(names, ["answers", "runs", "holds"]);
    assert!(!world.root.path().join("work/tests").join("x").exists());
}

fn failing() {
    let world = World::new();
    let mut wanted = server(&world, "failing");
    let mut answers = test("answers");
    answers.timeout = Duration::from_secs(4);
    answers.http = vec![http("/health", 500)];
    answers.ports = vec![4000];
    let mut runs = test("runs");
    runs.timeout = Duration::from_millis(500);
    let mut missing = command("true");
    missing.argv = vec!["/no/such".into()];
    let mut quiet = command("echo out; echo complaint >&2; exit 2");
    quiet.stdout = equals("other");
    runs.commands = vec![quiet, command("sleep 60"), missing];
    let mut holds = test("holds");
    let check = FileCheck {
        owner: Some("root".into()),
        group: Some("nobodys".into()),
        mode: Some(0o755),
        content: equals(""),
    };
    holds.files.insert("/srv/server.pl".into(), check);
    holds.files.insert(
        "/srv".into(),
        FileCheck {
            content: equals("x"),
            ..FileCheck::default()
        },
    );
    holds.present = vec!["/nothing".into()];
    holds.absent = vec!["/bin/sh".into()];
    holds.packages = vec!["openssh-server".into()];
    holds.packages_absent = vec!["dash".into()];
    let mut right = test("right");
    right.present = vec!["/bin/sh".into()];
    wanted.tests = vec![answers, runs, holds, right];
    let error = world.bake(&wanted).err().expect("its tests fail");
    let text = told(&error);
    let BakeError::Tests {
        log,
        failed: 3,
        of: 4,
        ..
    } = &error
    else {
        panic!("{text}");
    };
    for part in [
        "test \"answers\": GET /health on port 3000: the status is 200, and 500 is expected",
        "test \"answers\": port 4000: Connection refused",
        "`echo out; echo complaint >&2; exit 2` exited with code 2: complaint",
        "the stdout of `echo out; echo complaint >&2; exit 2` is \"out\\n\", and \"other\" is expected",
        "`sleep 60` took longer than 500 ms",
        "/no/such",
        "the owner of /srv/server.pl is 1000, and root is expected",
        "/etc/group has no `nobodys`",
        "the mode of /srv/server.pl is 0644, and 0755 is expected",
        "the content of /srv/server.pl is \"\\nuse strict",
        "/srv is no file",
        "/nothing is not there",
        "/bin/sh is there",
        "the package openssh-server is not installed",
        "the package dash is installed",
    ] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert!(!text.contains("test \"right\""), "{text}");
    let log = std::fs::read_to_string(log).unwrap();
    assert!(
        log.contains("starts as 1000") && log.contains("complaint"),
        "{log}"
    );
    let tags = world.store.tags().unwrap();
    assert!(tags.iter().all(|entry| !entry.tag.contains("failing")));
    // A failure is not remembered.
    wanted.tests.truncate(1);
    wanted.tests[0].http[0].status = 200;
    wanted.tests[0].ports = Vec::new();
    bake(&world, &wanted);
}

fn servers() {
    let world = World::new();
    let mut wanted = server(&world, "servers");
    let mut alone = test("alone");
    alone.timeout = Duration::from_secs(3);
    alone.env.insert("HOST".into(), "127.0.0.1".into());
    alone.http = vec![http("/health", 200)];
    let mut ends = alone.clone();
    ends.name = "ends".into();
    // It is told at once, not after the time.
    ends.timeout = Duration::from_secs(3600);
    ends.env.insert("HOST".into(), "nowhere".into());
    wanted.tests = vec![alone, ends];
    let text = told(&world.bake(&wanted).err().expect("its tests fail"));
    assert!(text.contains("let it listen on 0.0.0.0"), "{text}");
    let part = "the image's command, `perl server.pl`, exited with code 7 before all was asked:";
    assert!(
        text.contains(part) && text.contains("starts as 1000"),
        "{text}"
    );
}
