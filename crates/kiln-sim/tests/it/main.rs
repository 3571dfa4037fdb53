//! The simulator's own proof: the planner holds in every world, and each wrong planner is caught.

use kiln_sim::{Mutation, Options, Stats, run};

fn with(mutation: Mutation) -> Options {
    Options {
        mutation: Some(mutation),
        trace: false,
    }
}

#[test]
fn the_planner_holds_in_three_thousand_worlds() {
    let mut all = Stats::default();
    for seed in 0..3_000 {
        let stats = run(seed, &Options::default()).unwrap_or_else(|failure| panic!("{failure}"));
        all.rollouts += stats.rollouts;
        all.restarts += stats.restarts;
        all.warm_rollbacks += stats.warm_rollbacks;
        all.turned_back += stats.turned_back;
        all.reboots += stats.reboots;
    }
    // A world in which nothing happens would hold as well.
    assert!(all.rollouts > 5_000, "{all:?}");
    assert!(all.restarts > 1_000, "{all:?}");
    assert!(all.turned_back > 500, "{all:?}");
    assert!(all.warm_rollbacks > 100, "{all:?}");
    assert!(all.reboots > 100, "{all:?}");
}

#[test]
fn the_same_seed_gives_the_same_world() {
    let options = Options {
        mutation: None,
        trace: true,
    };
    for seed in 0..20 {
        assert_eq!(run(seed, &options), run(seed, &options));
    }
}

#[test]
#[ignore = "finds the seeds of the next test"]
fn seeds_that_catch() {
    for mutation in MUTATIONS {
        let found = (0..5_000).find_map(|seed| run(seed, &with(mutation)).err());
        match found {
            Some(failure) => println!(
                "{mutation:?}: seed {} invariant {}: {}",
                failure.seed, failure.invariant, failure.what
            ),
            None => println!("{mutation:?}: NOT CAUGHT"),
        }
    }
}

const MUTATIONS: [Mutation; 8] = [
    Mutation::SwitchBeforeReady,
    Mutation::StopOldAtSwitch,
    Mutation::StopBeforeDrained,
    Mutation::NeverReturn,
    Mutation::ForgetWarm,
    Mutation::NoDeadline,
    Mutation::ForgetOutstanding,
    Mutation::WaitForOldSet,
];
