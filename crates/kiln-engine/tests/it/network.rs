//! What instances reach, against a "world" in a network namespace of its own that knows no address of kiln's. Uses Debian's
//! iproute2 and nftables.

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use kiln_engine::sandbox::{self, SandboxNetwork};
use kiln_engine::{InsidePorts, Started, StepNetwork};
use kiln_model::ServiceKey;

use crate::world::World;

pub(crate) const TESTS: &[(&str, fn())] = &[
    (
        "an_instance_reaches_the_world_and_neither_host_nor_metadata",
        outbound,
    ),
    ("an_instance_is_reached_by_its_host_only", inbound),
    ("a_step_reaches_the_world_and_nothing_of_the_machine", step),
    (
        "a_service_is_reached_by_its_address_whatever_the_host_listens_on",
        services,
    ),
    (
        "a_flushed_firewall_is_mended_and_nothing_of_it_outlives_its_root",
        flushed,
    ),
    (
        "a_foreign_firewall_that_drops_everything_lets_the_bridge_pass",
        foreign,
    ),
];

fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// A machine beyond this one, with a server of one line on port 80 and the address that clouds have their metadata on.
struct Outside {
    name: String,
    address: Ipv4Addr,
    servers: Vec<Child>,
    /// One test drops what the whole machine forwards.
    _alone: MutexGuard<'static, ()>,
}

const METADATA: &str = "169.254.169.254";

impl Outside {
    fn new() -> Self {
        static NUMBER: AtomicU8 = AtomicU8::new(0);
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("kt{}-{number}", std::process::id());
        let (near, address) = (
            Ipv4Addr::new(198, 51, 100, number * 4 + 1),
            Ipv4Addr::new(198, 51, 100, number * 4 + 2),
        );
        let link = format!("kt{number}");
        run(&format!("ip netns add {name}"));
        let mut outside = Self {
            name: name.clone(),
            address,
            servers: Vec::new(),
            _alone: alone,
        };
        run(&format!(
            "ip link add {link} type veth peer name eth0 netns {name}"
        ));
        run(&format!("ip address add {near}/30 dev {link}"));
        run(&format!("ip link set {link} up"));
        for inside in [
            format!("address add {address}/30 dev eth0"),
            format!("address add {METADATA}/32 dev lo"),
            "link set eth0 up".to_owned(),
            "link set lo up".to_owned(),
        ] {
            run(&format!("ip -n {name} {inside}"));
        }
        let server = Command::new("ip")
            .args(["netns", "exec", &name, "busybox", "nc", "-ll", "-p", "80"])
            .args(["-e", "echo", "the world"])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        outside.servers.push(server);
        until_connected((address, 80).into());
        outside
    }
}

fn step() {
    let world = World::new();
    let outside = Outside::new();
    let host = Host::new();
    let port = host.port();
    let network = StepNetwork::open(world.root.path()).unwrap();
    let link = network.link().unwrap();
    let near = Ipv4Addr::from(u32::from(outside.address) - 1);
    let script = format!(
        "nc -w 5 {} 80; gw=$(ip route); gw=${{gw#default via }}; gw=${{gw%% *}}; \
         for at in \"$gw {port}\" \"{near} {port}\" \"{METADATA} 80\"; do \
         nc -w 2 $at < /dev/null; done; echo end",
        outside.address
    );
    let mut wanted = crate::steps::spec(&world, "network", &script);
    wanted.network = SandboxNetwork::Outbound(link);
    let mut said = Vec::new();
    let mut heard = |_, bytes: &[u8]| said.extend_from_slice(bytes);
    let ended = sandbox::run_to_end(&wanted, |_| {}, &|| false, &mut heard).unwrap();
    let said = String::from_utf8(said).unwrap();
    assert!(ended.used_network);
    assert!(said.contains("the world"), "{said}");
    assert!(said.contains("end") && !said.contains("the host"), "{said}");
    let mut wanted = crate::steps::spec(&world, "silent", "ip route");
    wanted.network = SandboxNetwork::Outbound(network.link().unwrap());
    let ended = sandbox::run_to_end(&wanted, |_| {}, &|| false, &mut |_, _| {}).unwrap();
    assert!(!ended.used_network);
    // The host's own network, where it is asked for.
    let mut wanted = crate::steps::spec(
        &world,
        "host",
        &format!("nc -w 2 127.0.0.1 {port} < /dev/null"),
    );
    wanted.network = SandboxNetwork::Host;
    let (_, said) = crate::steps::run(&wanted);
    assert!(said.contains("the host"), "{said}");
    let pid = base36(std::process::id());
    let mine = |command: &str| {
        run(command)
            .lines()
            .filter(|l| l.contains("kilns") && l.contains(&pid))
            .count()
    };
    assert!(mine("ip -o link") > 0 && mine("nft list tables") > 0);
    drop(network);
    assert_eq!(mine("ip -o link") + mine("nft list tables"), 0);
    // One that a killed bake left is removed by the next.
    run("ip link add kilnsab2hwcg000 type bridge");
    drop(StepNetwork::open(world.root.path()).unwrap());
    assert!(!run("ip -o link").contains("kilnsab2hwcg000"));
}

fn base36(mut number: u32) -> String {
    let mut digits = Vec::new();
    while number > 0 {
        digits.insert(0, char::from_digit(number % 36, 36).unwrap());
        number /= 36;
    }
    digits.into_iter().collect()
}

fn until_connected(at: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while let Err(error) = TcpStream::connect_timeout(&at, Duration::from_secs(1)) {
        assert!(Instant::now() < deadline, "{at}: {error}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        // Its end of the pair goes with it, and ours with that.
        run(&format!("ip netns delete {}", self.name));
    }
}

/// What an instance says after it tried to connect to each of these.
fn tries(world: &World, id: &str, egress: bool, places: &[(&str, u16)]) -> Vec<String> {
    let script: String = places
        .iter()
        .map(|(address, port)| {
            format!("nc -w 2 {address} {port} </dev/null 2>/dev/null || echo no {address} {port}; ")
        })
        .collect();
    let mut spec = world.spec(id, &script);
    spec.egress = egress;
    world.engine.start(&spec).unwrap();
    let record = world.engine.wait(&spec.id, None).unwrap().unwrap();
    world.engine.remove(&spec.id).unwrap();
    record.last_lines
}

/// Listens everywhere, as a host's own program does.
struct Host(TcpListener);

impl Host {
    fn new() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let accepts = listener.try_clone().unwrap();
        std::thread::spawn(move || {
            for stream in accepts.incoming() {
                let _ = stream.and_then(|mut stream| writeln!(stream, "the host"));
            }
        });
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }
}

fn outbound() {
    let world = World::new();
    let outside = Outside::new();
    let host = Host::new();
    let address = outside.address.to_string();
    run(&format!("ip route replace {METADATA} via {address}"));
    let at: SocketAddr = format!("{METADATA}:80").parse().unwrap();
    // The host itself reaches it, so that what an instance does not reach is the firewall's doing.
    TcpStream::connect_timeout(&at, Duration::from_secs(2)).unwrap();
    let gateway = world.engine.gateway().to_string();
    let near = Ipv4Addr::from(u32::from(outside.address) - 1).to_string();
    let lines = tries(
        &world,
        "open",
        true,
        &[
            (&address, 80),
            (METADATA, 80),
            (&gateway, host.port()),
            (&near, host.port()),
        ],
    );
    let expected = [
        "the world".to_owned(),
        format!("no {METADATA} 80"),
        format!("no {gateway} {}", host.port()),
        format!("no {near} {}", host.port()),
    ];
    assert_eq!(lines, expected);
    let lines = tries(&world, "closed", false, &[(&address, 80)]);
    assert_eq!(lines, [format!("no {address} 80")]);
    // The address of one that had no way out is no mark for ever.
    let lines = tries(&world, "open-again", true, &[(&address, 80)]);
    assert_eq!(lines, ["the world"]);
    run(&format!("ip route delete {METADATA}"));
}

/// On a low port, without any capability.
fn serving(world: &World, id: &str) -> Started {
    let spec = world.spec(id, "while :; do echo me | nc -l -p 80; done");
    world.engine.start(&spec).unwrap()
}

fn inbound() {
    let world = World::new();
    let other_root = World::new();
    let outside = Outside::new();
    let started = serving(&world, "serves");
    let address = started.address.unwrap();
    until_connected((address, 80).into());
    let text = address.to_string();
    let refused = [format!("no {text} 80")];
    assert_eq!(tries(&world, "sibling", true, &[(&text, 80)]), refused);
    assert_eq!(tries(&other_root, "cousin", true, &[(&text, 80)]), refused);
    // A neighbour that takes this machine for a router.
    let near = Ipv4Addr::from(u32::from(outside.address) - 1);
    run(&format!(
        "ip -n {} route add default via {near}",
        outside.name
    ));
    let reached = Command::new("ip")
        .args(["netns", "exec", &outside.name])
        .args(["busybox", "nc", "-w", "2", &text, "80"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!reached.status.success(), "{reached:?}");
}

fn services() {
    let world = World::new();
    let host = Host::new();
    let gateway = world.engine.gateway();
    let inside = TcpListener::bind((gateway, 0)).unwrap();
    let key = |name: &str| ServiceKey::try_from(format!("dev/{name}")).unwrap();
    let address = world.engine.service_address(&key("api")).unwrap();
    let other = world.engine.service_address(&key("web")).unwrap();
    assert_ne!(address, other);
    assert_eq!(world.engine.service_address(&key("api")).unwrap(), address);
    let ports = InsidePorts {
        services: inside.local_addr().unwrap().port(),
        names_udp: 9,
        names_tcp: 9,
        closed_names_udp: 9,
    };
    world.engine.open_inside(ports).unwrap();
    let accepted = std::thread::spawn(move || {
        (0..2)
            .map(|_| {
                let (mut stream, _) = inside.accept().unwrap();
                let meant = rustix::net::sockopt::ip_original_dst(&stream).unwrap();
                writeln!(stream, "meant {meant}").unwrap();
                meant
            })
            .collect::<Vec<_>>()
    });
    // The host has a program on the very port.
    let text = address.to_string();
    let port = host.port();
    let said = tries(&world, "calls", true, &[(&text, port)]);
    assert_eq!(said, [format!("meant {text}:{port}")]);
    let said = tries(&world, "closed-calls", false, &[(&text, 80)]);
    assert_eq!(said, [format!("meant {text}:80")]);
    assert_eq!(accepted.join().unwrap().len(), 2);
    world.engine.forget_service(&key("api")).unwrap();
    // An address that was another's a moment ago is the last to be given.
    assert_ne!(world.engine.service_address(&key("db")).unwrap(), address);
}

fn bridge(world: &World) -> String {
    let gateway = world.engine.gateway();
    let all = run("ip -o -4 address show");
    let line = all
        .lines()
        .find(|line| line.contains(&format!("{gateway}/")));
    let name = line.unwrap().split_whitespace().nth(1).unwrap();
    name.to_owned()
}

fn flushed() {
    let world = World::new();
    let outside = Outside::new();
    let host = Host::new();
    let gateway = world.engine.gateway().to_string();
    let bridge = bridge(&world);
    assert!(run("nft list tables").contains(&format!("table inet {bridge}")));
    run(&format!("nft delete table inet {bridge}"));
    world.engine.mend_network().unwrap();
    let address = outside.address.to_string();
    let lines = tries(
        &world,
        "after",
        true,
        &[(&address, 80), (&gateway, host.port())],
    );
    assert_eq!(
        lines,
        [
            "the world".to_owned(),
            format!("no {gateway} {}", host.port())
        ]
    );
    drop(world);
    assert!(!run("nft list ruleset").contains(&bridge));
    assert!(!run("ip link").contains(&bridge));
}

fn foreign() {
    let outside = Outside::new();
    // One that is there is not ours to change, and does as well.
    let had_one = run("nft list tables").contains("table ip filter");
    if !had_one {
        run("nft add table ip filter");
        run(
            "nft add chain ip filter FORWARD { type filter hook forward priority filter ; policy drop ; }",
        );
    }
    let world = World::new();
    let address = outside.address.to_string();
    let lines = tries(&world, "passes", true, &[(&address, 80)]);
    let bridge = bridge(&world);
    let rules = run("nft list table ip filter");
    drop(world);
    let after = run("nft list table ip filter");
    if !had_one {
        run("nft delete table ip filter");
    }
    assert_eq!(lines, ["the world"]);
    assert_eq!(rules.matches(&bridge).count(), 4, "{rules}");
    assert!(!after.contains(&bridge), "{after}");
}
