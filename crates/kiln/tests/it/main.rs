//! The binary as a person or a script meets it: here on a data root where nothing runs, in [`serving`] on one that serves.

#![allow(clippy::disallowed_methods)] // waits have deadlines

mod contexts;
mod dockerfiles;
mod golden;
mod locks;
mod proving;
mod prune;
mod recovering;
mod serving;
mod smallest;
mod turned_back;
mod verify;
mod world;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A folder of the test's own, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("kiln-cli-{}-{number}", std::process::id()));
        std::fs::create_dir_all(path.join("root")).unwrap();
        Self(path)
    }

    /// Nothing of the caller's environment but what the test says.
    fn kiln(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_kiln"))
            .args(arguments)
            .current_dir(&self.0)
            .env_clear()
            .env("KILN_ROOT", self.0.join("root"))
            .envs(environment.iter().copied())
            .output()
            .unwrap()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.join(name), text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const DEFINITION: &str = r#"
project = "shop"
variable "replicas" { default = 1 }
image "api" {
  version = "1.0.0"
  debian { suite = "bookworm" }
  cmd = ["/bin/true"]
}
service "api" {
  image    = image.api
  replicas = var.replicas
}
environment "production" {}
"#;

#[test]
fn a_right_definition_is_valid() {
    let folder = Folder::new();
    folder.write("kiln.hcl", DEFINITION);
    let output = folder.kiln(&["validate"], &[]);
    assert_eq!(
        text(&output.stdout),
        "kiln.hcl is valid: project shop, 1 image, 1 service, 1 environment besides dev\n",
        "{}",
        text(&output.stderr)
    );
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn variables_come_from_the_environment_and_arguments_win() {
    let folder = Folder::new();
    folder.write("kiln.hcl", DEFINITION);
    let replicas = |arguments: &[&str]| {
        let arguments: Vec<&str> = ["validate", "--json"]
            .iter()
            .chain(arguments)
            .copied()
            .collect();
        let output = folder.kiln(&arguments, &[("KILN_VAR_replicas", "3")]);
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        answer["spec"]["services"]["api"]["policy"]["replicas"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(replicas(&[]), 3);
    assert_eq!(replicas(&["--var", "replicas=5"]), 5);
}

#[test]
fn a_wrong_definition_is_shown_where_it_is_wrong() {
    let folder = Folder::new();
    folder.write(
        "kiln.hcl",
        &DEFINITION.replace("replicas = var", "replica = var"),
    );
    let output = folder.kiln(&["validate"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stdout), "");
    let error = text(&output.stderr);
    assert!(
        error.starts_with(
            "error: `service \"api\"` has no attribute `replica`\n   --> kiln.hcl:11:3\n"
        ),
        "{error}"
    );
    assert!(error.contains("= help: write `replicas`"), "{error}");
}

/// Beside `kiln.hcl`, every `*.kiln.hcl` belongs to it; files that it reads stay inside its folder.
#[test]
fn a_definition_may_be_split_and_may_read_files_of_its_folder() {
    let folder = Folder::new();
    folder.write("kiln.hcl", DEFINITION);
    folder.write(
        "more.kiln.hcl",
        "locals { motd = file(\"${path.module}/motd.txt\") }\nservice \"b\" {\n  image   = image.api\n  command = [local.motd, timestamp()]\n}\n",
    );
    folder.write("motd.txt", "hi");
    folder.write(
        "kiln.lock",
        "{ \"images\": { \"x\": { \"date\": 86400 } } }",
    );
    // Another definition's, and one that an editor left.
    folder.write("other.hcl", "nonsense");
    folder.write(".more.kiln.hcl", "nonsense");
    let found = folder.kiln(&["validate", "--json"], &[]);
    assert_eq!(text(&found.stderr), "");
    let answer: serde_json::Value = serde_json::from_slice(&found.stdout).unwrap();
    assert_eq!(
        answer["spec"]["services"]["b"]["command"],
        serde_json::json!(["hi", "1970-01-02T00:00:00Z"])
    );
    folder.write(
        "wrong.kiln.hcl",
        "locals {\n  a = file(\"/etc/hostname\")\n  b = file(\"../x\")\n  c = fileset(\"conf\", \"*\")\n}\n",
    );
    std::os::unix::fs::symlink("/etc", folder.0.join("conf")).unwrap();
    let found = folder.kiln(&["validate"], &[]);
    let message = text(&found.stderr);
    assert_eq!(found.status.code(), Some(1));
    assert!(message.contains("wrong.kiln.hcl:2:12"), "{message}");
    assert!(
        message.contains("outside of the definition's folder"),
        "{message}"
    );
    assert!(message.contains("`conf` is a symbolic link"), "{message}");
    assert!(
        message.ends_with("3 errors in wrong.kiln.hcl\n"),
        "{message}"
    );
    assert_eq!(message.matches("error: ").count(), 3, "{message}");
}

#[test]
fn what_is_wrong_is_told_to_programs_too() {
    let folder = Folder::new();
    folder.write(
        "kiln.hcl",
        &DEFINITION.replace("replicas = var", "replica = var"),
    );
    let output = folder.kiln(&["validate", "--json"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(text(&output.stderr), "");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["valid"], false);
    let found = answer["diagnostics"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{answer}");
    assert_eq!(
        found[0]["summary"],
        "`service \"api\"` has no attribute `replica`"
    );
    assert_eq!(found[0]["help"], "write `replicas`");
    assert_eq!(
        found[0]["range"],
        serde_json::json!({
            "file": "kiln.hcl",
            "start": { "line": 11, "column": 3 },
            "end": { "line": 11, "column": 10 },
        })
    );
    // What has no place in the file.
    folder.write("kiln.hcl", DEFINITION);
    let output = folder.kiln(&["validate", "--json", "--env", "prodution"], &[]);
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answer["diagnostics"][0]["range"], serde_json::Value::Null);
}

#[test]
fn definitions_have_one_form() {
    let folder = Folder::new();
    let wild = DEFINITION
        .trim_start()
        .replace("  ", "\t")
        .replace(" = ", "=");
    let tame = DEFINITION.trim_start();
    folder.write("kiln.hcl", &wild);
    folder.write("a.kiln.hcl", "locals {\n  a = 1\n}\n");
    folder.write("other.hcl", "a=1\n");
    let read = |name: &str| std::fs::read_to_string(folder.0.join(name)).unwrap();

    let checked = folder.kiln(&["fmt", "--check"], &[]);
    assert_eq!(
        text(&checked.stdout),
        "kiln.hcl\n",
        "{}",
        text(&checked.stderr)
    );
    assert_eq!(checked.status.code(), Some(2));
    assert_eq!(read("kiln.hcl"), wild);

    let done = folder.kiln(&["fmt"], &[]);
    assert_eq!(text(&done.stdout), "kiln.hcl\n");
    assert_eq!(done.status.code(), Some(0));
    assert_eq!(read("kiln.hcl"), tame);

    let again = folder.kiln(&["fmt", "--check", "."], &[]);
    assert_eq!(
        (text(&again.stdout).as_str(), again.status.code()),
        ("", Some(0))
    );
    assert_eq!(read("other.hcl"), "a=1\n");
    folder.kiln(&["fmt", "other.hcl"], &[]);
    assert_eq!(read("other.hcl"), "a = 1\n");

    folder.write("kiln.hcl", "a = = 1\n");
    let wrong = folder.kiln(&["fmt"], &[]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(
        text(&wrong.stderr).contains("kiln.hcl:1:5"),
        "{}",
        text(&wrong.stderr)
    );
    assert_eq!(read("kiln.hcl"), "a = = 1\n");
    let left = std::fs::read_dir(&folder.0).unwrap().count();
    assert_eq!(left, 4, "a temporary file is left");
}

#[test]
fn a_missing_definition_says_where_it_was_looked_for() {
    let folder = Folder::new();
    let output = folder.kiln(&["validate", "--file", "shop"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        text(&output.stderr),
        "error: there is no definition at shop\n  help: go to the folder of a kiln.hcl, or name it with `--file` (`kiln up DIR`)\n"
    );
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let folder = Folder::new();
    for arguments in [&["aply"][..], &["apply", "--jsn"], &[], &["rollback"]] {
        let output = folder.kiln(arguments, &[]);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
    for arguments in [&["--help"][..], &["--version"], &["apply", "--help"]] {
        let output = folder.kiln(arguments, &[]);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
}

#[test]
fn commands_that_ask_the_controller_say_when_there_is_none() {
    let folder = Folder::new();
    let root = folder.0.join("root");
    for arguments in [
        &["status"][..],
        &["history"],
        &["logs", "api"],
        &["rollback", "api"],
    ] {
        let output = folder.kiln(arguments, &[]);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert_eq!(
            text(&output.stderr),
            format!(
                "error: kiln is not running on {}\n  help: start it with `kiln up` or `kiln supervise`, or name another root with `--root`\n",
                root.display()
            ),
            "{arguments:?}"
        );
    }
}

#[test]
fn down_on_a_root_where_nothing_runs_has_nothing_to_do() {
    let folder = Folder::new();
    let output = folder.kiln(&["down"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stdout),
        format!("nothing runs on {}\n", folder.0.join("root").display())
    );
}

#[test]
fn looking_at_images_leaves_an_unused_root_unused() {
    let folder = Folder::new();
    let output = folder.kiln(&["images", "--json"], &[]);
    assert_eq!(text(&output.stdout), "{\"images\":[]}\n");
    let output = folder.kiln(&["images", "prune", "--json"], &[]);
    assert_eq!(
        text(&output.stdout),
        "{\"dry_run\":false,\"images\":[],\"mounts\":[],\"files\":0,\"freed\":0,\"needed\":0,\"cache\":0}\n"
    );
    assert_eq!(std::fs::read_dir(folder.0.join("root")).unwrap().count(), 0);
}

#[test]
fn a_data_root_whose_sockets_would_have_too_long_a_path_is_refused() {
    let folder = Folder::new();
    let long = format!("/tmp/{}", "x".repeat(80));
    let output = folder.kiln(&["status", "--root", &long], &[]);
    assert_eq!(output.status.code(), Some(64));
    assert!(!Path::new(&long).exists());
}

#[test]
fn a_dockerfile_is_checked_without_root_and_its_arguments_are_told() {
    let folder = Folder::new();
    folder.write("Dockerfile", "FROM scratch AS Base\nCMD run\n");
    let bake = |arguments: &[&str]| {
        let mut all = vec!["bake", "--dockerfile", "Dockerfile"];
        all.extend(arguments);
        let output = folder.kiln(&all, &[]);
        (output.status.code(), text(&output.stderr))
    };
    let (code, said) = bake(&["--check"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("(StageNameCasing)\n  --> Dockerfile:1:17\n"),
        "{said}"
    );
    assert!(said.contains("(JSONArgsRecommended)"), "{said}");
    let (code, said) = bake(&[]);
    assert_eq!(code, Some(64), "{said}");
    assert!(said.contains("--tag NAME:VERSION"), "{said}");
    folder.write("Dockerfile", "FROM scratch\nCOPPY a b\n");
    let (code, said) = bake(&["--check"]);
    assert_eq!(code, Some(1));
    assert!(
        said.starts_with("error: `COPPY`") && said.contains("did you mean COPY?"),
        "{said}"
    );
    folder.write("Dockerfile", "FROM scratch\nCMD [\"run\"]\n");
    assert_eq!(bake(&["--check"]), (Some(0), String::new()));
}

#[test]
fn a_secret_is_valid_and_refused_where_it_would_be_given() {
    let folder = Folder::new();
    let secret = "  secret \"URL\" { from = \"file:secrets.age#url\" }\n}\nenvironment";
    folder.write("kiln.hcl", &DEFINITION.replace("}\nenvironment", secret));
    let output = folder.kiln(&["validate"], &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = folder.kiln(&["plan"], &[]);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("`service \"api\"` has the secret `URL`"),
        "{said}"
    );
    assert!(said.contains("kiln bake"), "{said}");
}
