//! Layers of every shape: names up to the longest, directories of several blocks, contents around block
//! sizes, attributes from none to more than a block, owners past 16 bits, hard links, devices, whiteouts.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kiln_oci::{Entry, Kind, Tree};
use proptest::prelude::*;

fn size() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => Just(0usize),
        3 => 1usize..300,
        1 => prop::sample::select(vec![
            4095usize, 4096, 4097, 8191, 8192, 8193, 4096 - 32, 4096 - 33, 4096 - 64, 4096 - 63, 262_144, 300_001,
        ]),
        2 => 300usize..9000,
    ]
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        6 => "[a-z!~+-]{1,3}",
        2 => "[a-z]{60,120}",
        1 => "[A-Z]{255}",
        1 => "[é\n\"\\\\ ]{1,6}",
    ]
    .prop_filter("a layer keeps these names", |name| {
        !name.starts_with(".wh.")
    })
}

fn id() -> impl Strategy<Value = u32> {
    prop::sample::select(vec![
        0u32,
        1,
        1000,
        65534,
        65535,
        65536,
        2_097_151,
        2_097_152,
        4_294_967_294,
    ])
}

fn mtime() -> impl Strategy<Value = i64> {
    prop_oneof![
        4 => Just(1_700_000_000i64),
        1 => prop::sample::select(vec![0i64, 1, -5, 4_294_967_296, 8_589_934_592]),
    ]
}

fn xattrs() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let name = prop_oneof![
        "trusted\\.[a-z]{1,9}",
        "trusted\\.[a-z]{240,246}",
        "security\\.[a-z]{2,6}x",
    ];
    let value = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..40),
        1 => prop::collection::vec(any::<u8>(), 3000..5000),
    ];
    prop_oneof![
        4 => Just(BTreeMap::new()),
        2 => prop::collection::btree_map(name.prop_map(String::into_bytes), value, 1..5),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => (size(), any::<u8>()).prop_map(|(size, seed)| {
            let bytes: Vec<u8> = (0..size).map(|at| (at / 7) as u8 ^ (at as u8).wrapping_mul(seed)).collect();
            match Entry::bytes(bytes, 0).kind {
                kind @ Kind::File { .. } => kind,
                other => panic!("{other:?}"),
            }
        }),
        2 => any::<bool>().prop_map(|opaque| Kind::Dir { opaque }),
        2 => prop_oneof!["[a-z/.]{1,90}", "[a-z/]{101,400}", "[a-z]{3900,4095}"]
            .prop_map(|target| Kind::Symlink { target: target.into_bytes() }),
        1 => (1u32..4096, 0u32..1_048_576).prop_map(|(major, minor)| Kind::CharDev { major, minor }),
        1 => (1u32..4096, 0u32..1_048_576).prop_map(|(major, minor)| Kind::BlockDev { major, minor }),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Whiteout),
    ]
}

fn entry() -> impl Strategy<Value = Entry> {
    (kind(), 0u32..0o10000, id(), id(), mtime(), xattrs()).prop_map(
        |(kind, mode, uid, gid, mtime, xattrs)| {
            let mode = match kind {
                Kind::Symlink { .. } => 0o777,
                _ => mode,
            };
            let mut entry = Entry::new(kind, mode).owner(uid, gid).mtime(mtime);
            entry.xattrs = xattrs;
            entry
        },
    )
}

/// A tree of up to a few hundred entries.
pub(crate) fn tree() -> impl Strategy<Value = Tree> {
    let root = entry().prop_map(|mut entry| {
        entry.kind = Kind::Dir { opaque: false };
        entry
    });
    let place = prop::collection::vec(any::<prop::sample::Index>(), 1..60);
    let items = (place, prop::collection::vec((name(), entry()), 60));
    let links = prop::collection::vec((any::<prop::sample::Index>(), name()), 0..6);
    // One directory of many names, so that some take several blocks.
    (root, items, links, 0usize..400).prop_map(|(root, (places, items), links, many)| {
        let mut tree = Tree::new();
        tree.insert("", root).unwrap();
        let mut dirs = vec![PathBuf::new()];
        for (place, (name, entry)) in places.iter().zip(items) {
            let path = place.get(&dirs).join(name);
            let is_dir = matches!(entry.kind, Kind::Dir { .. });
            if tree.get(&path).is_some() {
                continue;
            }
            tree.insert(&path, entry).unwrap();
            if is_dir {
                dirs.push(path);
            }
        }
        for number in 0..many {
            let entry = Entry::bytes(Vec::new(), 0o644).mtime(1_700_000_000);
            tree.insert(format!("many/a-name-of-some-length-{number}"), entry)
                .unwrap_or_else(|error| panic!("{error}"));
        }
        let files: Vec<PathBuf> = tree
            .iter()
            .filter(|(_, entry)| matches!(entry.kind, Kind::File { .. }))
            .map(|(path, _)| path.to_path_buf())
            .collect();
        for (place, name) in links {
            if files.is_empty() || tree.get(&name).is_some() {
                continue;
            }
            let target = place.get(&files).clone();
            tree.insert(name, Entry::new(Kind::Hardlink { target }, 0))
                .unwrap();
        }
        tree
    })
}
