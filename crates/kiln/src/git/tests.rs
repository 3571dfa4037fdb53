//! Against repositories that Git itself made.

use kiln_bake::FileStat;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("kiln-git-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn git(&self, arguments: &[&str]) -> String {
        let output = Command::new("git")
            .args([
                "-c",
                "user.name=t",
                "-c",
                "user.email=t@localhost",
                "-c",
                "init.defaultBranch=main",
            ])
            .args(arguments)
            .current_dir(&self.0)
            .env_remove("GIT_DIR")
            .output()
            .expect("this test needs git");
        assert!(
            output.status.success(),
            "git {arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.0.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn inputs() -> Vec<Input<'static>> {
    ["kiln.hcl", "app"]
        .map(|name| PathBuf::from(name).into())
        .to_vec()
}

fn dirty(folder: &Path) -> bool {
    commit(folder, &inputs(), &Listings::default())
        .unwrap()
        .expect("a commit")
        .dirty
}

fn repository(name: &str) -> Folder {
    let folder = Folder::new(name);
    folder.git(&["init", "--quiet"]);
    for index in 0..40 {
        folder.write(
            &format!("shop/app/file{index}"),
            &format!("{}{index}", "the same again\n".repeat(40)),
        );
    }
    folder.write("shop/kiln.hcl", "project = \"shop\"\n");
    folder.write("shop/app/sub/run", "#!/bin/sh\n");
    folder.write("other", "x");
    std::os::unix::fs::symlink("file1", folder.0.join("shop/app/link")).unwrap();
    folder.git(&["add", "."]);
    folder.git(&["commit", "--quiet", "--message=one"]);
    folder
}

#[test]
fn a_folder_in_no_repository_has_no_commit() {
    // Below the root of the file system, where no repository is above it.
    let folder = Folder::new("none");
    folder.write("kiln.hcl", "");
    assert_eq!(
        commit(&folder.0, &inputs(), &Listings::default()).unwrap(),
        None
    );
    folder.git(&["init", "--quiet"]);
    assert_eq!(
        commit(&folder.0, &inputs(), &Listings::default()).unwrap(),
        None,
        "no commit yet"
    );
}

#[test]
fn only_what_is_baked_makes_it_dirty() {
    let folder = repository("dirty");
    let shop = folder.0.join("shop");
    let head = folder.git(&["rev-parse", "HEAD"]);
    assert_eq!(
        commit(&shop, &inputs(), &Listings::default()).unwrap(),
        Some(Commit {
            prefix: "shop".into(),
            sha: head,
            dirty: false,
            changed: None,
        })
    );

    folder.write("other", "changed, and baked by nobody");
    folder.write("shop/README", "new");
    assert!(!dirty(&shop));

    for (path, text) in [
        ("shop/app/file3", "x"),
        ("shop/app/new", ""),
        ("shop/kiln.hcl", "y"),
        ("shop/app/sub/x.pyc", "z"),
    ] {
        let before = std::fs::read(folder.0.join(path)).ok();
        folder.write(path, text);
        let changed = commit(&shop, &inputs(), &Listings::default())
            .unwrap()
            .unwrap()
            .changed;
        assert_eq!(changed.as_deref(), Some(Path::new(path)));
        assert!(dirty(&shop), "{path}");
        match before {
            Some(bytes) => std::fs::write(folder.0.join(path), bytes).unwrap(),
            None => std::fs::remove_file(folder.0.join(path)).unwrap(),
        }
        assert!(!dirty(&shop), "{path} is as it was");
    }
    // Staged is not committed.
    folder.write("shop/app/file3", "staged");
    folder.git(&["add", "."]);
    assert!(dirty(&shop));
    folder.git(&["commit", "--quiet", "--message=two"]);
    assert!(!dirty(&shop));

    let run = folder.0.join("shop/app/sub/run");
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(dirty(&shop), "an executable bit");
    std::fs::remove_file(&run).unwrap();
    assert!(dirty(&shop), "a file that is gone");
}

#[test]
fn a_lock_that_is_not_the_commits_makes_it_dirty() {
    let folder = repository("lock");
    let shop = folder.0.join("shop");
    folder.write("shop/kiln.lock", "one");
    assert!(dirty(&shop), "nobody else has it");
    folder.git(&["add", "."]);
    folder.git(&["commit", "--quiet", "--message=lock"]);
    assert!(!dirty(&shop));
    folder.write("shop/kiln.lock", "two");
    assert!(dirty(&shop), "other packages than the commit's");
    std::fs::remove_file(shop.join("kiln.lock")).unwrap();
    assert!(dirty(&shop), "it will be resolved anew");
    folder.write("shop/kiln.lock", "one");
    assert!(!dirty(&shop));
}

#[test]
fn packed_repositories_and_worktrees_are_read() {
    let folder = repository("packed");
    for index in 0..20 {
        folder.write(
            "shop/app/file7",
            &format!("{}{index}", "the same again\n".repeat(40)),
        );
        folder.git(&[
            "commit",
            "--quiet",
            "--all",
            &format!("--message=change {index}"),
        ]);
    }
    folder.git(&["gc", "--quiet", "--aggressive", "--prune=now"]);
    assert!(
        !folder.0.join(".git/refs/heads/main").exists(),
        "gc packs references"
    );
    let shop = folder.0.join("shop");
    let head = folder.git(&["rev-parse", "HEAD"]);
    assert_eq!(
        commit(&shop, &inputs(), &Listings::default()).unwrap(),
        Some(Commit {
            prefix: "shop".into(),
            sha: head,
            dirty: false,
            changed: None,
        })
    );
    folder.write("shop/app/file7", "x");
    assert!(dirty(&shop));
    // Every commit and tree of the history, whichever way the pack has them.
    for old in folder.git(&["rev-list", "HEAD"]).lines() {
        folder.git(&["checkout", "--quiet", "--force", "--detach", old]);
        assert_eq!(
            commit(&shop, &inputs(), &Listings::default()).unwrap(),
            Some(Commit {
                prefix: "shop".into(),
                sha: old.to_owned(),
                dirty: false,
                changed: None,
            })
        );
    }
    let tree = Folder::new("worktree");
    folder.git(&[
        "worktree",
        "add",
        "--quiet",
        "--force",
        tree.0.to_str().unwrap(),
        "main",
    ]);
    let head = folder.git(&["rev-parse", "main"]);
    assert_eq!(
        commit(&tree.0.join("shop"), &inputs(), &Listings::default()).unwrap(),
        Some(Commit {
            prefix: "shop".into(),
            sha: head,
            dirty: false,
            changed: None,
        })
    );
}

#[test]
fn what_a_dockerignore_leaves_out_does_not_make_it_dirty() {
    let folder = repository("ignore");
    let shop = folder.0.join("shop");
    let is_dirty = |rules: &str, path: &Path| {
        let ignore = Ignore::parse(rules).unwrap();
        let inputs = [Input::context(PathBuf::from("."), &ignore)];
        let found = commit_without_lock(path, &inputs, &Listings::default())
            .unwrap()
            .unwrap();
        found.dirty
    };
    folder.write("shop/target/app", "built");
    folder.write("shop/app/file3", "changed");
    folder.write("shop/kiln.lock", "an input like any other");
    assert!(is_dirty("", &shop));
    assert!(is_dirty("target\nkiln.lock\n", &shop));
    assert!(!is_dirty("target\nkiln.lock\napp/file3\n", &shop));
    assert!(!is_dirty("*\n!app/sub\n", &shop));
    assert!(is_dirty("*\n!app/file3\n", &shop));
    assert!(is_dirty("", &folder.0), "the whole repository");
    assert!(!is_dirty("shop\n", &folder.0));
}

/// Also where Git has just written it, which is too young to be believed.
#[test]
fn a_file_that_the_index_knows_is_not_read() {
    for version in ["2", "3", "4"] {
        let folder = repository(&format!("index{version}"));
        let shop = folder.0.join("shop");
        let file = shop.join("app/file5");
        let earlier = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
        let set = |path: &Path| {
            let file = std::fs::File::options().append(true).open(path).unwrap();
            file.set_modified(earlier).unwrap();
        };
        set(&file);
        if version == "3" {
            folder.write("shop/later", "");
            folder.git(&["add", "--intent-to-add", "shop/later"]);
        }
        folder.git(&["update-index", "--index-version", version]);
        folder.git(&["update-index", "-q", "--refresh"]);
        let index = Index::open(&folder.0.join(".git"));
        let oid = folder.git(&["rev-parse", "HEAD:shop/app/file5"]);
        let oid = Oid::parse(&oid).unwrap();
        let holds = || index.holds(b"shop/app/file5", &FileStat::at(&file).unwrap().stamp, oid);
        assert!(holds(), "version {version}");
        let text = std::fs::read(&file).unwrap();
        std::fs::write(&file, "x".repeat(text.len())).unwrap();
        // As a program may that wants nobody to notice.
        set(&file);
        assert!(!holds() && dirty(&shop), "version {version}");
    }
}
