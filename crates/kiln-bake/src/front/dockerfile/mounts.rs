//! The mounts of a RUN: what they are of, what of them is in the step's key, and how they come into its container.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_config::dockerfile::{Complaint, Dockerfile, Ignore, Mount, MountKind, Run, Text, mount};
use kiln_engine::{MountSource, Overlay, SandboxMount};
use kiln_git::ForwardedAgent;
use kiln_model::{Digest, canonical_json};

use super::bake::Bake;
use super::cache_mounts::{Cache, Wanted};
use super::copy_from::CopyFrom;
use super::ignore_file::ignore_of;
use super::key::{MountKey, Origin};
use super::schedule::lock;
use super::source::{Found, Root, SourceError, TakenKind, lexical, resolve};
use super::stage_builder::StageBuilder;
use crate::error::BakeError;
use crate::in_root;
use crate::step::scratch::Scratch;

const SECRETS: &str = "/run/secrets";
const SECRET_MODE: u32 = 0o400;
/// As BuildKit has it: scripts may rely on it.
const AGENTS: &str = "/run/buildkit/ssh_agent";
const AGENT_MODE: u32 = 0o600;
const CACHE_MODE: u32 = 0o755;

/// A mount as it is written, with what it takes from.
pub(super) struct Planned<'a> {
    place: &'a Text,
    mount: Mount,
    /// Absolute; none for a secret that is only a variable.
    target: Option<String>,
    from: Option<CopyFrom>,
    /// What of the step's key it is.
    origin: Option<Origin<'static>>,
}

/// What the container gets, and what has to live as long as the step.
#[derive(Default)]
pub(super) struct Mounted {
    pub(super) mounts: Vec<SandboxMount>,
    pub(super) env: Vec<(String, String)>,
    caches: BTreeMap<Digest, Cache>,
    agents: Vec<ForwardedAgent>,
    views: Vec<Overlay>,
}

impl Planned<'_> {
    pub(super) fn key(&self) -> MountKey<'_> {
        let Self {
            place: _,
            mount,
            target,
            from: _,
            origin,
        } = self;
        let Mount {
            kind,
            from: _,
            source,
            target: _,
            read_only,
            id: _,
            // Who else has it changes nothing that a step may rely on.
            sharing: _,
            required: _,
            size,
            env,
            mode,
            uid,
            gid,
        } = mount;
        MountKey {
            kind: match kind {
                MountKind::Bind => "bind",
                MountKind::Cache => "cache",
                MountKind::Tmpfs => "tmpfs",
                MountKind::Secret => "secret",
                MountKind::Ssh => "ssh",
            },
            target: target.as_deref(),
            writable: !read_only,
            origin: origin.as_ref(),
            source: source.as_deref(),
            id: self.id(),
            env: env.as_deref(),
            size: *size,
            owner: (*mode, *uid, *gid),
        }
    }

    /// By what name the cache, secret or agent is known.
    fn id(&self) -> Option<String> {
        let Mount {
            kind,
            source,
            target,
            id,
            ..
        } = &self.mount;
        match kind {
            MountKind::Bind | MountKind::Tmpfs => None,
            MountKind::Ssh => Some(id.clone().unwrap_or_else(|| "default".to_owned())),
            MountKind::Secret => source.clone().or_else(|| id.clone()).or_else(|| {
                let target = target.as_deref().unwrap_or_default();
                Some(last(target).to_owned())
            }),
            MountKind::Cache => id.clone().or_else(|| {
                let target = target.as_deref().unwrap_or_default();
                let clean = lexical(target).display().to_string();
                Some(if target.starts_with('/') {
                    format!("/{clean}")
                } else {
                    clean
                })
            }),
        }
    }
}

fn last(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or(path)
}

impl StageBuilder {
    /// The mounts of a RUN with their variables replaced and what they take found.
    pub(super) fn mounts<'r>(
        &self,
        bake: &Bake<'_>,
        file: &Dockerfile,
        run: &'r Run,
    ) -> Result<Vec<Planned<'r>>, BakeError> {
        let mut planned = Vec::new();
        let mut agents = 0;
        let flags = run.flags.iter().filter(|flag| flag.name == "mount");
        for place in flags.filter_map(|flag| flag.value.as_ref()) {
            let mut scope = self.scope();
            let mount = mount(place, &mut |text| {
                scope.expand(file, text).map_err(|error| *error.complaint)
            })
            .map_err(|complaint| file.error(complaint))?;
            bake.warn(self.index, scope.warnings);
            let mut one = Planned {
                place,
                target: None,
                from: None,
                origin: None,
                mount,
            };
            let wanted = one.mount.target.as_deref();
            one.target = match one.mount.kind {
                MountKind::Secret => match (wanted, &one.mount.env) {
                    (Some(target), _) => Some(rooted(target)),
                    (None, Some(_)) => None,
                    (None, None) => {
                        let id = one.id().unwrap_or_default();
                        Some(format!("{SECRETS}/{}", last(&id)))
                    }
                },
                MountKind::Ssh => {
                    agents += 1;
                    Some(match wanted {
                        Some(target) => rooted(target),
                        None => format!("{AGENTS}.{}", agents - 1),
                    })
                }
                MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => {
                    let target = rooted(&self.absolute(wanted.unwrap_or_default()));
                    if target == "/" {
                        return Err(wrong(
                            file,
                            place,
                            "nothing can be mounted on the root".to_owned(),
                            "name a folder: target=/path",
                        ));
                    }
                    Some(target)
                }
            };
            one.from = match (one.mount.kind, &one.mount.from) {
                (MountKind::Bind | MountKind::Cache, Some(name)) => {
                    Some(self.named(bake, file, name, false)?)
                }
                (MountKind::Bind, None) => Some(CopyFrom::Folder {
                    path: bake.request.context.to_owned(),
                    name: None,
                }),
                _ => None,
            };
            let source = rooted(one.mount.source.as_deref().unwrap_or_default());
            one.origin = match &one.from {
                None => None,
                Some(CopyFrom::Stage(stage)) => Some(Origin::Layers {
                    layers: stage.layers.iter().map(|layer| layer.diff_id).collect(),
                    sources: vec![source],
                    exclude: Vec::new(),
                    parents: false,
                }),
                Some(CopyFrom::Folder { path, name: of }) => {
                    let nothing = Ignore::default();
                    let own;
                    let mut root = Root {
                        path,
                        ignore: Some(match of {
                            None => bake.request.ignore,
                            Some(_) => {
                                own = ignore_of(path)
                                    .map_err(|reason| wrong(file, place, reason, ""))?;
                                &own
                            }
                        }),
                        exclude: &nothing,
                        stat_cache: Some(&mut lock(&bake.stat_cache)),
                    };
                    let found = root.find_one(&source).map_err(|error| match error {
                        SourceError::Io { path, source } => BakeError::io(path)(source),
                        error => wrong(
                            file,
                            place,
                            error.to_string(),
                            "the source is relative to the context, the folder at the end of the command",
                        ),
                    })?;
                    bake.take(of.as_deref(), &found);
                    let found = found.into_iter().map(Cow::Owned);
                    Some(Origin::Files(found.collect()))
                }
            };
            planned.push(one);
        }
        Ok(planned)
    }
}

impl Bake<'_> {
    /// Makes what the container mounts. Caches are waited for.
    pub(super) fn mounted(
        &self,
        file: &Dockerfile,
        planned: &[Planned<'_>],
        scratch: &Scratch,
    ) -> Result<Mounted, BakeError> {
        let mut mounted = Mounted::default();
        // In one order everywhere, so that no two steps wait for each other's.
        let mut caches = planned
            .iter()
            .filter(|one| one.mount.kind == MountKind::Cache)
            .map(|one| Ok((cache_key(one)?, one)))
            .collect::<Result<Vec<_>, BakeError>>()?;
        caches.sort_by_key(|(key, _)| *key);
        for (key, one) in caches {
            if !mounted.caches.contains_key(&key) {
                let cache = self.cache(key, one, scratch, &mut mounted.views)?;
                mounted.caches.insert(key, cache);
            }
        }
        for (index, one) in planned.iter().enumerate() {
            let mount = &one.mount;
            let folder = |name: &str| scratch.folder(&format!("mount{index}/{name}"));
            let source = match mount.kind {
                MountKind::Tmpfs => MountSource::Tmpfs { size: mount.size },
                MountKind::Cache => {
                    let data = &mounted.caches[&cache_key(one)?].data;
                    MountSource::Folder {
                        root: data.clone(),
                        inside: match one.from {
                            // The source is a part of what it began with.
                            Some(_) => PathBuf::new(),
                            None => lexical(mount.source.as_deref().unwrap_or_default()),
                        },
                    }
                }
                MountKind::Bind => match (&one.from, &one.origin) {
                    (Some(CopyFrom::Folder { path, .. }), Some(Origin::Files(found))) => {
                        let root = folder("copy")?;
                        let inside = copy_found(found, path, &root)?;
                        MountSource::Folder { root, inside }
                    }
                    (Some(CopyFrom::Stage(stage)), _) => {
                        let source = rooted(mount.source.as_deref().unwrap_or_default());
                        let inside = lexical(&source);
                        self.must_have(file, one, &stage.layers, &inside, &folder("look")?)?;
                        MountSource::Layers {
                            layers: self.lowers(&stage.layers)?,
                            inside,
                            scratch: folder("layers")?,
                        }
                    }
                    _ => continue,
                },
                MountKind::Secret => match self.secret(file, one, &mut mounted.env)? {
                    Some(source) => source,
                    None => continue,
                },
                MountKind::Ssh => match self.agent(file, one, &folder("agent")?, &mut mounted)? {
                    Some(source) => source,
                    None => continue,
                },
            };
            // A secret that is only a variable is nowhere.
            if let Some(to) = &one.target {
                mounted.mounts.push(SandboxMount {
                    to: to.clone(),
                    // A socket has to be written to.
                    writable: !mount.read_only || mount.kind == MountKind::Ssh,
                    source,
                });
            }
        }
        Ok(mounted)
    }

    /// None: it was not given, and is not required. With `env` it is a variable, too.
    fn secret(
        &self,
        file: &Dockerfile,
        one: &Planned<'_>,
        env: &mut Vec<(String, String)>,
    ) -> Result<Option<MountSource>, BakeError> {
        let mount = &one.mount;
        let id = one.id().unwrap_or_default();
        let Some(content) = self.request.granted.secrets.get(&id) else {
            if mount.required {
                return Err(wrong(
                    file,
                    one.place,
                    format!("the secret `{id}` is required, and was not given"),
                    format!("give it: --secret id={id},src=FILE or --secret id={id},env=VARIABLE"),
                ));
            }
            return Ok(None);
        };
        if let Some(name) = &mount.env {
            let value = String::from_utf8(content.clone()).map_err(|_| {
                wrong(
                    file,
                    one.place,
                    format!("the secret `{id}` is no text, and can't be a variable"),
                    "mount it as a file: target=/path",
                )
            })?;
            let name = if name.is_empty() { &id } else { name };
            env.push((name.clone(), value));
        }
        Ok(Some(MountSource::Secret {
            content: content.clone(),
            mode: mount.mode.unwrap_or(SECRET_MODE),
            uid: mount.uid.unwrap_or(0),
            gid: mount.gid.unwrap_or(0),
        }))
    }

    /// None: it was not given, and is not required. The first of a step's agents is that of SSH_AUTH_SOCK.
    fn agent(
        &self,
        file: &Dockerfile,
        one: &Planned<'_>,
        root: &Path,
        mounted: &mut Mounted,
    ) -> Result<Option<MountSource>, BakeError> {
        let mount = &one.mount;
        let id = one.id().unwrap_or_default();
        let Some(agent) = self.request.granted.ssh.get(&id) else {
            if mount.required {
                return Err(wrong(
                    file,
                    one.place,
                    format!("the SSH agent `{id}` is required, and was not given"),
                    format!("give it: --ssh {id}, --ssh {id}=SOCKET or --ssh {id}=KEYFILE"),
                ));
            }
            return Ok(None);
        };
        let owner = (
            mount.mode.unwrap_or(AGENT_MODE),
            mount.uid.unwrap_or(0),
            mount.gid.unwrap_or(0),
        );
        let forwarded = ForwardedAgent::forward(root, "agent", agent.clone(), owner)
            .map_err(BakeError::io(root))?;
        mounted.agents.push(forwarded);
        if let (Some(target), true) = (&one.target, mounted.agents.len() == 1) {
            let variable = ("SSH_AUTH_SOCK".to_owned(), target.clone());
            mounted.env.push(variable);
        }
        Ok(Some(MountSource::Folder {
            root: root.to_owned(),
            inside: "agent".into(),
        }))
    }

    fn cache(
        &self,
        key: Digest,
        one: &Planned<'_>,
        scratch: &Scratch,
        views: &mut Vec<Overlay>,
    ) -> Result<Cache, BakeError> {
        let mount = &one.mount;
        let owned = mount.mode.is_some() || mount.uid.is_some() || mount.gid.is_some();
        let source = lexical(mount.source.as_deref().unwrap_or_default());
        // As BuildKit has it: what has an owner of its own begins empty.
        let is_seeded = !(owned && source.as_os_str().is_empty());
        let seed = match &one.from {
            Some(CopyFrom::Stage(stage)) if is_seeded => {
                let folder = scratch.folder(&format!("seed{}", views.len()))?;
                let view = self.view(&stage.layers, &folder)?;
                let inside = resolve(view.path(), &source, true).map_err(BakeError::View)?;
                let seed = view.path().join(inside);
                views.push(view);
                Some(seed)
            }
            Some(CopyFrom::Folder { path, .. }) if is_seeded => {
                let inside = resolve(path, &source, true).map_err(BakeError::io(path))?;
                Some(path.join(inside))
            }
            _ => None,
        };
        let wanted = Wanted {
            id: &one.id().unwrap_or_default(),
            key,
            sharing: mount.sharing,
            seed: seed.as_deref(),
            mode: mount.mode.unwrap_or(CACHE_MODE),
            owner: (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0)),
        };
        Cache::take(self.store, &wanted, &|| self.schedule.is_stopped())
    }

    fn must_have(
        &self,
        file: &Dockerfile,
        one: &Planned<'_>,
        layers: &[kiln_oci::Layer],
        inside: &Path,
        folder: &Path,
    ) -> Result<(), BakeError> {
        if inside.as_os_str().is_empty() {
            return Ok(());
        }
        let view = self.view(layers, folder)?;
        let real = resolve(view.path(), inside, true).map_err(BakeError::View)?;
        match fs::symlink_metadata(view.path().join(real)) {
            Ok(_) => return Ok(()),
            Err(error) if in_root::is_absent(&error) => {}
            Err(error) => return Err(BakeError::View(error)),
        }
        let name = one.mount.from.as_ref().map_or("", |from| &from.text);
        Err(wrong(
            file,
            one.place,
            format!("there is no `/{}` in `{name}`", inside.display()),
            "the source is relative to the root of what is mounted from",
        ))
    }
}

fn wrong(file: &Dockerfile, place: &Text, what: String, help: impl Into<String>) -> BakeError {
    BakeError::Dockerfile(file.error(Complaint::error(place.whole(), what, help)))
}

fn rooted(path: &str) -> String {
    format!("/{}", lexical(path).display())
}

fn cache_key(one: &Planned<'_>) -> Result<Digest, BakeError> {
    let Mount {
        source,
        mode,
        uid,
        gid,
        ..
    } = &one.mount;
    let from = match &one.from {
        Some(CopyFrom::Stage(stage)) => stage.layers.iter().map(|layer| layer.diff_id).collect(),
        _ => Vec::new(),
    };
    let source = one.from.is_some().then_some(source);
    Ok(Digest::of(&canonical_json(&(
        "cache mount",
        one.id(),
        from,
        source,
        (mode, uid, gid),
    ))?))
}

/// What was found in a folder, copied as root's to where a step may do with it as it likes. The path below `to` that is mounted.
fn copy_found(found: &[Cow<'_, Found>], from: &Path, to: &Path) -> Result<PathBuf, BakeError> {
    let mut inside = PathBuf::new();
    for one in found {
        let base = if one.is_folder {
            to.to_owned()
        } else {
            inside = PathBuf::from(&one.name);
            to.join(&one.name)
        };
        let mut folders = Vec::new();
        for taken in &one.entries {
            let (source, copy) = (from.join(one.place(taken)), base.join(&taken.path));
            let copy = if taken.path.as_os_str().is_empty() {
                base.clone()
            } else {
                copy
            };
            let failed = |error| BakeError::io(&copy)(error);
            match &taken.kind {
                TakenKind::Folder => {
                    fs::create_dir_all(&copy).map_err(failed)?;
                    folders.push((copy, taken.mode));
                }
                TakenKind::File { .. } => {
                    let there = BakeError::io(&source);
                    // Builds compare times.
                    let modified = fs::metadata(&source)
                        .and_then(|meta| meta.modified())
                        .map_err(there)?;
                    fs::copy(&source, &copy).map_err(failed)?;
                    fs::set_permissions(&copy, Permissions::from_mode(taken.mode))
                        .map_err(failed)?;
                    File::open(&copy)
                        .and_then(|file| file.set_times(FileTimes::new().set_modified(modified)))
                        .map_err(failed)?;
                }
                TakenKind::Link { target } => {
                    std::os::unix::fs::symlink(target, &copy).map_err(failed)?;
                }
                TakenKind::Fifo => {
                    let mode = rustix::fs::Mode::from_raw_mode(taken.mode);
                    let kind = rustix::fs::FileType::Fifo;
                    rustix::fs::mknodat(rustix::fs::CWD, &copy, kind, mode, 0)
                        .map_err(|errno| failed(errno.into()))?;
                }
            }
        }
        // Those that can't be written to are closed when they are full.
        for (folder, mode) in folders.into_iter().rev() {
            fs::set_permissions(&folder, Permissions::from_mode(mode))
                .map_err(BakeError::io(&folder))?;
        }
    }
    Ok(inside)
}
