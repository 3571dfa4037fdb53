//! Which instance gets a request: the one with fewer outstanding requests of two chosen at random.
//!
//! Two random choices come close to the least loaded of all, without the herd that a global minimum makes
//! when several threads look at it at once.

/// What [`choose`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    pub index: usize,
    /// Nobody was eligible: this is the least bad of those that aren't.
    pub fail_open: bool,
}

/// Chooses of `count` instances, those in `tried` left out. `random(n)` gives a number below `n`.
/// `None`: all are tried, or there is none.
pub fn choose(
    count: usize,
    tried: &[usize],
    eligible: impl Fn(usize) -> bool,
    load: impl Fn(usize) -> u64,
    mut random: impl FnMut(usize) -> usize,
) -> Option<Choice> {
    let mut of_two = |may: &dyn Fn(usize) -> bool| {
        let candidates = (0..count).filter(|i| !tried.contains(i) && may(*i)).count();
        let nth = |n: usize| (0..count).filter(|i| !tried.contains(i) && may(*i)).nth(n);
        match candidates {
            0 => None,
            1 => nth(0),
            _ => {
                let first = random(candidates);
                // One of the others, each as likely.
                let second = (first + 1 + random(candidates - 1)) % candidates;
                let (first, second) = (nth(first)?, nth(second)?);
                Some(if load(second) < load(first) {
                    second
                } else {
                    first
                })
            }
        }
    };
    if let Some(index) = of_two(&eligible) {
        return Some(Choice {
            index,
            fail_open: false,
        });
    }
    of_two(&|_| true).map(|index| Choice {
        index,
        fail_open: true,
    })
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

    #[test]
    fn the_less_loaded_of_two_gets_it() {
        for seed in 0..100 {
            let choice = choose(2, &[], |_| true, |i| [7, 3][i], dice(seed)).unwrap();
            assert_eq!(
                choice,
                Choice {
                    index: 1,
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
            hits[choose(5, &[], |_| true, |i| u64::from(i == 2), &mut random)
                .unwrap()
                .index] += 1;
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
            let choice = choose(4, &[0], |i| i != 1, |i| i as u64, dice(seed)).unwrap();
            assert!(matches!(choice.index, 2 | 3) && !choice.fail_open);
        }
        assert_eq!(choose(2, &[0, 1], |_| true, |_| 0, dice(0)), None);
        assert_eq!(choose(0, &[], |_| true, |_| 0, dice(0)), None);
    }

    #[test]
    fn all_ejected_fails_open() {
        let choice = choose(3, &[0], |_| false, |i| i as u64, dice(3)).unwrap();
        assert!(choice.fail_open && choice.index != 0);
    }
}
