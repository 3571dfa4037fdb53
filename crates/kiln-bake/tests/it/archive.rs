//! A small signed archive on a port of its own, with what can be wrong about one.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use kiln_model::Digest;
use pgp::composed::{
    ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedSecretKey,
};
use pgp::types::Password;

use crate::world;

#[derive(Clone)]
enum Content {
    Bytes(Vec<u8>),
    File(std::path::PathBuf),
}

type Files = Arc<Mutex<BTreeMap<String, Content>>>;

pub(crate) struct Archive {
    address: SocketAddr,
    files: Files,
    ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
    key: SignedSecretKey,
    release: String,
    /// Of the last package, from the archive's root.
    pub(crate) package: String,
}

pub(crate) fn key() -> SignedSecretKey {
    SecretKeyParamsBuilder::default()
        .key_type(KeyType::Ed25519Legacy)
        .can_certify(true)
        .can_sign(true)
        .primary_user_id("archive <archive@example.org>".into())
        .build()
        .unwrap()
        .generate(rand::thread_rng())
        .unwrap()
}

pub(crate) fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        _ => "arm64",
    }
}

pub(crate) const DATE: &str = "Fri, 20 Nov 2026 00:00:00 UTC";
const RELEASE: &str = "/debian/dists/bookworm/InRelease";

impl Archive {
    /// With the packages of the smallest image.
    pub(crate) fn start() -> Self {
        let mut archive = Self::empty();
        let mut text = String::new();
        for (locked, content) in world::packages() {
            let field = |name: &str| locked[name].as_str().unwrap().to_owned();
            let package = field("path");
            // All of them essential, so that nothing has to be said about who needs whom.
            text.push_str(&format!(
                "Package: {}\nVersion: {}\nArchitecture: {}\nEssential: yes\nFilename: {package}\nSize: {}\nSHA256: {}\n\n",
                field("name"),
                field("version"),
                field("arch"),
                locked["size"],
                field("sha256").trim_start_matches("sha256:"),
            ));
            let path = format!("/debian/{package}");
            let mut files = archive.files.lock().unwrap();
            files.insert(path, Content::File(content));
            archive.package = package;
        }
        archive.release = archive.publish("debian", "bookworm", arch(), DATE, &text);
        archive
    }

    /// With nothing in it.
    pub(crate) fn empty() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let files = Files::default();
        let ended = Arc::new(AtomicBool::new(false));
        let server = {
            let (files, ended) = (files.clone(), ended.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    if ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let files = files.clone();
                    // It ends with its connection, which the bake closes.
                    std::thread::spawn(move || serve(stream, &files));
                }
            })
        };
        Self {
            address,
            files,
            ended,
            server: Some(server),
            key: key(),
            release: String::new(),
            package: String::new(),
        }
    }

    /// Publishes a suite with the packages of `text`, signed; gives its release file. `root`: below the server's.
    pub(crate) fn publish(
        &self,
        root: &str,
        suite: &str,
        arch: &str,
        date: &str,
        text: &str,
    ) -> String {
        let mut packed = Vec::new();
        liblzma::read::XzEncoder::new(text.as_bytes(), 1)
            .read_to_end(&mut packed)
            .unwrap();
        let index = format!("main/binary-{arch}/Packages.xz");
        let release = format!(
            "Codename: {suite}\nSuite: oldstable\nDate: {date}\nSHA256:\n {} {} {index}\n",
            Digest::of(&packed).hex(),
            packed.len()
        );
        let dists = format!("/{root}/dists/{suite}");
        self.set(&format!("{dists}/{index}"), packed);
        self.sign_at(&format!("{dists}/InRelease"), &release, &self.key);
        release
    }

    /// The same of bookworm, with a suite of security fixes that has none: without it nothing is baked.
    pub(crate) fn publish_with_fixes(&self, root: &str, arch: &str, date: &str, text: &str) {
        self.publish(root, "bookworm", arch, date, text);
        let root = root.replacen("debian", "debian-security", 1);
        self.publish(&root, "bookworm-security", arch, date, "");
    }

    pub(crate) fn remove(&self, path: &str) {
        self.files.lock().unwrap().remove(path);
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/debian", self.address)
    }

    pub(crate) fn keyring(&self) -> String {
        let key = self.key.to_public_key();
        key.to_armored_string(ArmorOptions::default()).unwrap()
    }

    pub(crate) fn set(&self, path: &str, bytes: Vec<u8>) {
        let content = Content::Bytes(bytes);
        self.files.lock().unwrap().insert(path.to_owned(), content);
    }

    pub(crate) fn content(&self, path: &str) -> Vec<u8> {
        bytes(&self.files.lock().unwrap()[path])
    }

    fn sign(&self, text: &str, key: &SignedSecretKey) {
        self.sign_at(RELEASE, text, key);
    }

    fn sign_at(&self, path: &str, text: &str, key: &SignedSecretKey) {
        let password = Password::empty();
        let signed =
            CleartextSignedMessage::sign(rand::thread_rng(), text, &key.primary_key, &password)
                .unwrap();
        let signed = signed.to_armored_string(ArmorOptions::default()).unwrap();
        self.set(path, signed.into_bytes());
    }

    pub(crate) fn signed_by(&self, key: &SignedSecretKey) {
        self.sign(&self.release, key);
    }

    /// Its release with `from` replaced, and properly signed.
    pub(crate) fn says(&self, from: &str, to: &str) {
        self.sign(&self.release.replacen(from, to, 1), &self.key);
    }

    /// What is served under the paths that hold `part` is changed. What was there comes back with `restore`.
    pub(crate) fn change(&self, part: &str, change: impl Fn(Vec<u8>) -> Option<Vec<u8>>) -> Before {
        let mut files = self.files.lock().unwrap();
        let path = files.keys().find(|path| path.contains(part));
        let path = path.expect("it is served").clone();
        let before = files.remove(&path).unwrap();
        if let Some(bytes) = change(bytes(&before)) {
            files.insert(path.clone(), Content::Bytes(bytes));
        }
        Before(path, before)
    }

    pub(crate) fn restore(&self, Before(path, content): Before) {
        self.files.lock().unwrap().insert(path, content);
    }
}

pub(crate) struct Before(String, Content);

impl Drop for Archive {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        // It waits for a connection.
        let _ = TcpStream::connect(self.address);
        let _ = self.server.take().map(JoinHandle::join);
    }
}

fn bytes(content: &Content) -> Vec<u8> {
    match content {
        Content::Bytes(bytes) => bytes.clone(),
        Content::File(path) => std::fs::read(path).unwrap(),
    }
}

fn serve(stream: TcpStream, files: &Files) {
    let mut out = stream.try_clone().unwrap();
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        lines.by_ref().take_while(|line| !line.is_empty()).count();
        let content = files.lock().unwrap().get(&path).cloned();
        let (status, body) = match content {
            Some(content) => ("200 OK", bytes(&content)),
            None => ("404 Not Found", Vec::new()),
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        if out.write_all(head.as_bytes()).is_err() || out.write_all(&body).is_err() {
            return;
        }
    }
}
