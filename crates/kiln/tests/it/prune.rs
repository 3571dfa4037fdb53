//! Pruning beside a daemon: what runs, is warm or can be returned to stays, whatever its tags.

use serde_json::Value;

use crate::world::World;

#[test]
fn after_pruning_every_release_can_still_be_returned_to() {
    let world = World::new();
    for (number, text) in ["one\n", "two\n", "three\n"].into_iter().enumerate() {
        world.write("app/index.html", text);
        world.commit();
        match number {
            0 => drop(world.succeed(&["up", "--detach"])),
            _ => drop(world.succeed(&["apply"])),
        }
        assert_eq!(world.answer().as_deref(), Some(text));
    }
    // One that no service ever ran.
    world.write("app/index.html", "four\n");
    let never = world.json(&["bake", "--json"])["images"][0].clone();
    let listed = world.json(&["images", "--json"]);
    let listed = listed["images"].as_array().unwrap().clone();
    let tags = listed
        .iter()
        .flat_map(|image| image["tags"].as_array().unwrap());
    let tags: Vec<&str> = tags.map(|tag| tag.as_str().unwrap()).collect();
    let removed = world.json(&[&["images", "rm", "--json"], &tags[..]].concat());
    assert_eq!(removed["removed"].as_array().unwrap().len(), tags.len());
    let cache = world.root().join("store/mounts/0a");
    std::fs::create_dir_all(cache.join("data")).unwrap();
    std::fs::write(cache.join("lock"), "").unwrap();
    std::fs::write(cache.join("id"), "/root/.cache").unwrap();

    let dry = world.json(&["images", "prune", "--dry-run", "--json"]);
    let pruned = world.json(&["images", "prune", "--json"]);
    assert_eq!(
        pruned["images"],
        Value::Array(vec![never["digest"].clone()])
    );
    assert_eq!(pruned["images"], dry["images"]);
    assert_eq!(pruned["mounts"][0]["id"], "/root/.cache");
    assert!(!cache.exists());
    let images = world.json(&["images", "--json"]);
    let images = images["images"].as_array().unwrap();
    assert_eq!(images.len(), 3);
    assert!(
        images
            .iter()
            .all(|image| image["tags"] == Value::Array(vec![]))
    );

    assert_eq!(world.answer().as_deref(), Some("three\n"));
    // What is warm, and what is not.
    world.succeed(&["rollback", "web"]);
    assert_eq!(world.answer().as_deref(), Some("two\n"));
    world.succeed(&["rollback", "web", "--to", "1"]);
    assert_eq!(world.answer().as_deref(), Some("one\n"));
    world.succeed(&["images", "prune"]);
    // Baked again, a removed tag is the same image's.
    world.write("app/index.html", "four\n");
    let again = world.json(&["bake", "--json"]);
    assert_eq!(again["images"][0]["digest"], never["digest"]);
    world.down();
}
