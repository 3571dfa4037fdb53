//! `--ssh` with keys of files: what OpenSSH's own programs get from them, inside of a step.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use kiln_bake::{SshAgent, SshKeys};

use crate::dockerfile::Bench;

pub(crate) const TESTS: &[(&str, fn())] = &[("keys_of_files_sign_for_steps", keys)];

fn done(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A program of this machine and the libraries that it needs, below `root`.
fn take(root: &Path, program: &str) {
    let libraries = done(Command::new("ldd").arg(program));
    let paths = libraries
        .split_whitespace()
        .filter(|word| word.starts_with('/'));
    for path in paths.chain([program]) {
        let to = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

fn keys() {
    let mut bench = Bench::new();
    let folder = bench.root.path().join("keys");
    fs::create_dir(&folder).unwrap();
    let made = |name: &str, arguments: &[&str]| {
        let path = folder.join(name);
        done(
            Command::new("ssh-keygen")
                .args(arguments)
                .args(["-q", "-C", name, "-f"])
                .arg(&path),
        );
        path
    };
    let mut all = SshKeys::default();
    let kinds = [
        ("ed25519", &["-t", "ed25519", "-N", ""][..]),
        ("rsa", &["-t", "rsa", "-b", "2048", "-N", ""]),
        ("p256", &["-t", "ecdsa", "-b", "256", "-N", ""]),
        ("p384", &["-t", "ecdsa", "-b", "384", "-N", ""]),
    ];
    let public = bench.context.join("public");
    fs::create_dir(&public).unwrap();
    let mut listed = String::new();
    for (name, arguments) in kinds {
        let path = made(name, arguments);
        all.add(&path).unwrap();
        let path = folder.join(format!("{name}.pub"));
        listed.push_str(&done(Command::new("ssh-keygen").arg("-lf").arg(&path)));
        fs::copy(&path, public.join(format!("{name}.pub"))).unwrap();
    }
    let secret = made("secret", &["-t", "ed25519", "-N", "a passphrase"]);
    let error = SshKeys::default().add(&secret).unwrap_err();
    assert!(error.contains("has a passphrase"), "{error}");
    let old = made("old", &["-t", "rsa", "-b", "2048", "-m", "PEM", "-N", ""]);
    let error = SshKeys::default().add(&old).unwrap_err();
    assert!(error.contains("ssh-keygen -p -f"), "{error}");

    bench
        .granted
        .ssh
        .insert("default".into(), SshAgent::Keys(Arc::new(all)));
    let root = bench.context.join("root");
    for program in ["/usr/bin/ssh-add", "/usr/bin/ssh-keygen"] {
        take(&root, program);
    }
    let text = "FROM busybox\nCOPY root /\nCOPY public /public\nRUN echo said > /said\n\
        RUN --mount=type=ssh,required /usr/bin/ssh-add -l > /listed && \
            for key in /public/*.pub; do /usr/bin/ssh-keygen -Y sign -f $key -n test < /said > $key.sig || exit 1; done\n\
        RUN --mount=type=ssh ! /usr/bin/ssh-add -D\n";
    let baked = bench.baked("keys:1", text);
    bench.look(&baked, |view| {
        assert_eq!(fs::read_to_string(view.join("listed")).unwrap(), listed);
        for (name, _) in kinds {
            let mut check = Command::new("ssh-keygen");
            check.args(["-Y", "check-novalidate", "-n", "test", "-s"]);
            check.arg(view.join(format!("public/{name}.pub.sig")));
            check.stdin(Stdio::from(fs::File::open(view.join("said")).unwrap()));
            let told = done(&mut check);
            assert!(told.contains("Good \"test\" signature"), "{name}: {told}");
        }
    });
    // Nothing of a key is anywhere that lasts.
    let key = fs::read_to_string(folder.join("ed25519")).unwrap();
    let line = key.lines().nth(2).unwrap();
    let found = crate::runs::holders(bench.store.dir().parent().unwrap(), line);
    assert_eq!(found, Vec::<std::path::PathBuf>::new());
}
