//! Which instance gets a request: a set by weight, then in it the one with fewer outstanding requests of two chosen at
//! random.
//!
//! Two random choices come close to the least loaded of all, without the herd that a global minimum makes
//! when several threads look at it at once.

use kiln_model::Weight;

/// One set of a route, as [`choose`] needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetShare {
    pub weight: Weight,
    /// How many instances it has.
    pub instances: usize,
}

/// One instance of a route, by position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub set: usize,
    pub instance: usize,
}

/// What [`choose`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub place: Place,
    /// Nobody was eligible: this is the least bad of those that aren't.
    pub fail_open: bool,
}

/// Chooses an instance, those in `tried` left out. `random(n)` gives a number below `n`.
///
/// Weights count relative to the sets that have an eligible instance: a set that has none costs no request while another
/// has one, and the smallest weight gets its share of the draws. A set of weight 0 gets nothing. `None`: all are tried,
/// or there is none.
pub fn choose(
    sets: &[SetShare],
    tried: &[Place],
    eligible: impl Fn(Place) -> bool,
    load: impl Fn(Place) -> u64,
    mut random: impl FnMut(usize) -> usize,
) -> Option<Choice> {
    let untried = |place: Place| !tried.contains(&place);
    if let Some(place) = among(
        sets,
        |place| untried(place) && eligible(place),
        &load,
        &mut random,
    ) {
        return Some(Choice {
            place,
            fail_open: false,
        });
    }
    among(sets, untried, &load, &mut random).map(|place| Choice {
        place,
        fail_open: true,
    })
}

fn among(
    sets: &[SetShare],
    may: impl Fn(Place) -> bool,
    load: impl Fn(Place) -> u64,
    mut random: impl FnMut(usize) -> usize,
) -> Option<Place> {
    let candidates = |set: usize| {
        let may = &may;
        (0..sets[set].instances)
            .map(move |instance| Place { set, instance })
            .filter(move |place| may(*place))
    };
    let set = match sets {
        // Of one set, no draw is needed.
        [only] if only.weight > Weight::NONE => 0,
        _ => draw(sets, |set| candidates(set).next().is_some(), &mut random)?,
    };
    match candidates(set).count() {
        0 => None,
        1 => candidates(set).next(),
        count => {
            let first = random(count);
            // One of the others, each as likely.
            let second = (first + 1 + random(count - 1)) % count;
            let (first, second) = (candidates(set).nth(first)?, candidates(set).nth(second)?);
            Some(if load(second) < load(first) {
                second
            } else {
                first
            })
        }
    }
}

/// One of the sets that have somebody, as likely as its weight says.
fn draw(
    sets: &[SetShare],
    has_any: impl Fn(usize) -> bool,
    mut random: impl FnMut(usize) -> usize,
) -> Option<usize> {
    let weights = || {
        sets.iter()
            .enumerate()
            .map(|(set, share)| (set, usize::from(share.weight.permille())))
            .filter(|(set, weight)| *weight > 0 && has_any(*set))
    };
    let total: usize = weights().map(|(_, weight)| weight).sum();
    if total == 0 {
        return None;
    }
    let mut drawn = random(total);
    for (set, weight) in weights() {
        if drawn < weight {
            return Some(set);
        }
        drawn -= weight;
    }
    // Somebody became ineligible between the sum and the draw.
    weights().last().map(|(set, _)| set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dice(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed;
        move |n| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        }
    }

    fn one(instances: usize) -> [SetShare; 1] {
        [SetShare {
            weight: Weight::WHOLE,
            instances,
        }]
    }

    fn two(shares: [(u16, usize); 2]) -> [SetShare; 2] {
        shares.map(|(weight, instances)| SetShare {
            weight: Weight::try_from(weight).unwrap(),
            instances,
        })
    }

    fn at(instance: usize) -> Place {
        Place { set: 0, instance }
    }

    #[test]
    fn the_less_loaded_of_two_gets_it() {
        for seed in 0..100 {
            let load = |place: Place| [7, 3][place.instance];
            let choice = choose(&one(2), &[], |_| true, load, dice(seed)).unwrap();
            assert_eq!(
                choice,
                Choice {
                    place: at(1),
                    fail_open: false
                }
            );
        }
    }

    #[test]
    fn the_most_loaded_of_many_never_gets_it_and_all_others_do() {
        let mut random = dice(1);
        let mut hits = [0; 5];
        for _ in 0..2000 {
            let load = |place: Place| u64::from(place.instance == 2);
            let choice = choose(&one(5), &[], |_| true, load, &mut random).unwrap();
            hits[choice.place.instance] += 1;
        }
        assert_eq!(hits[2], 0);
        assert!(
            hits.iter().enumerate().all(|(i, n)| i == 2 || *n > 300),
            "{hits:?}"
        );
    }

    #[test]
    fn ejected_and_tried_ones_are_left_out() {
        for seed in 0..100 {
            let load = |place: Place| place.instance as u64;
            let choice =
                choose(&one(4), &[at(0)], |place| place != at(1), load, dice(seed)).unwrap();
            assert!(matches!(choice.place.instance, 2 | 3) && !choice.fail_open);
        }
        assert_eq!(
            choose(&one(2), &[at(0), at(1)], |_| true, |_| 0, dice(0)),
            None
        );
        assert_eq!(choose(&one(0), &[], |_| true, |_| 0, dice(0)), None);
        assert_eq!(choose(&[], &[], |_| true, |_| 0, dice(0)), None);
    }

    #[test]
    fn all_ejected_fails_open() {
        let choice = choose(&one(3), &[at(0)], |_| false, |_| 0, dice(3)).unwrap();
        assert!(choice.fail_open && choice.place != at(0));
    }

    fn hits(sets: &[SetShare], tried: &[Place], eligible: impl Fn(Place) -> bool) -> [u32; 2] {
        let mut random = dice(5);
        let mut hits = [0; 2];
        for _ in 0..10_000 {
            if let Some(choice) = choose(sets, tried, &eligible, |_| 0, &mut random) {
                hits[choice.place.set] += 1;
            }
        }
        hits
    }

    #[test]
    fn sets_get_their_shares_however_many_instances_they_have() {
        let [a, b] = hits(&two([(900, 1), (100, 9)]), &[], |_| true);
        assert_eq!(a + b, 10_000);
        assert!((800..1200).contains(&b), "{b}");
        let [_, b] = hits(&two([(999, 1), (1, 1)]), &[], |_| true);
        assert!(
            (1..40).contains(&b),
            "the smallest share is not nobody: {b}"
        );
    }

    #[test]
    fn a_set_without_anybody_gets_nothing_while_another_has_some() {
        assert_eq!(hits(&two([(900, 0), (100, 1)]), &[], |_| true), [0, 10_000]);
        // Nor one whose instances all fail, or were all tried.
        let sets = two([(500, 2), (500, 2)]);
        assert_eq!(hits(&sets, &[], |place| place.set == 1), [0, 10_000]);
        assert_eq!(hits(&sets, &[at(0), at(1)], |_| true), [0, 10_000]);
        let fails_open = choose(&sets, &[], |_| false, |_| 0, dice(0)).unwrap();
        assert!(fails_open.fail_open);
    }

    #[test]
    fn a_set_of_no_weight_gets_nothing_even_where_nobody_else_is() {
        assert_eq!(hits(&two([(1000, 1), (0, 1)]), &[], |_| true), [10_000, 0]);
        assert_eq!(hits(&two([(1000, 0), (0, 1)]), &[], |_| true), [0, 0]);
        let none = [SetShare {
            weight: Weight::NONE,
            instances: 1,
        }];
        assert_eq!(choose(&none, &[], |_| true, |_| 0, dice(0)), None);
    }
}
