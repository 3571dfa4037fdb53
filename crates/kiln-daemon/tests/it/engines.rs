//! The local engine behind its protocol, by the suite that every engine passes.

use std::collections::BTreeMap;
use std::sync::mpsc;
use std::time::Duration;

use kiln_daemon::LocalEngine;
use kiln_engine::{Engine, EngineOptions};
use kiln_model::{Command, Digest, Observation, Release, Resources, UnknownFields};
use kiln_oci::{ImageConfig, Store};
use kiln_sim::conformance::{Behaviour, Subject, check_engine};

use crate::world::program;

pub(crate) const TESTS: &[(&str, fn())] =
    &[("the_local_engine_passes_the_suite_of_engines", conforms)];

struct Local {
    runtime: tokio::runtime::Handle,
    engine: LocalEngine,
    said: mpsc::Receiver<Observation>,
    image: Digest,
}

impl Subject for Local {
    fn release(&self, behaviour: Behaviour) -> Release {
        let (program, word) = match behaviour {
            Behaviour::Serves => ("/app", ""),
            Behaviour::Exits => ("/app", "exit"),
            Behaviour::CannotStart => ("/nothing", ""),
        };
        Release {
            image: self.image,
            command: vec![program.into(), "app".into()],
            env: BTreeMap::from([("BEHAVIOUR".to_owned(), word.to_owned())]),
            user: "1000:1000".into(),
            workdir: String::new(),
            stop_signal: String::new(),
            port: Some(3000),
            tmpfs: BTreeMap::new(),
            resources: Resources::default(),
            egress: true,
            unknown: UnknownFields::default(),
        }
    }

    fn send(&mut self, command: Command) {
        let _inside = self.runtime.enter();
        self.engine.send(command);
    }

    fn next(&mut self) -> Option<Observation> {
        self.said.recv_timeout(Duration::from_secs(15)).ok()
    }
}

/// A runtime that turns on a thread of its own until the test program ends.
fn turning() -> tokio::runtime::Handle {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let handle = runtime.handle().clone();
    std::thread::spawn(move || runtime.block_on(std::future::pending::<()>()));
    handle
}

fn conforms() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir(&root).unwrap();
    let store = Store::open(&root).unwrap();
    let layer = store.add_layer(&program()).unwrap();
    let image = store.put_image(&ImageConfig::default(), &[layer]).unwrap();
    let engine = Engine::open(EngineOptions { root }).unwrap();
    let (say, said) = mpsc::channel();
    let mut local = Local {
        runtime: turning(),
        engine: LocalEngine::new(engine.clone(), store, move |observation| {
            drop(say.send(observation));
        }),
        said,
        image,
    };
    let checked = check_engine(&mut local);
    engine.close();
    checked.unwrap();
}
