//! What a command costs: wall time, and the processor time of the whole machine while it ran.
//!
//! A peer's work is spread over its client, its daemon and what that starts, in groups of its own. What the machine as a whole
//! spent counts all of it alike, and is right for as long as nothing else runs.

use std::ops::{Add, Div};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::watchdog::{Watchdog, shown};
use super::world::{WorldError, interruption};

/// `sysconf(_SC_CLK_TCK)`: the same on every Linux.
const TICKS_PER_SECOND: u64 = 100;

/// What a command did to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Cost {
    pub(super) wall: Duration,
    /// User, system and interrupts of all cores, in steps of 10 ms.
    pub(super) cpu: Duration,
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            cpu: self.cpu + other.cpu,
        }
    }
}

impl Div<u32> for Cost {
    type Output = Self;

    fn div(self, by: u32) -> Self {
        Self {
            wall: self.wall / by,
            cpu: self.cpu / by,
        }
    }
}

/// Runs to its end; an exit other than 0 is an error with all that it said.
pub(super) fn measure(command: &mut Command) -> Result<Cost, WorldError> {
    if interruption()?.load(std::sync::atomic::Ordering::Relaxed) {
        return Err(WorldError::Interrupted);
    }
    let shown = shown(command);
    let failed = |source| WorldError::Io {
        what: format!("`{shown}` could not be run"),
        source,
    };
    std::os::unix::process::CommandExt::process_group(command, 0)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let before = busy()?;
    let begun = Instant::now();
    let child = command.spawn().map_err(failed)?;
    let watchdog = Watchdog::start(child.id());
    let output = child.wait_with_output().map_err(failed)?;
    let wall = begun.elapsed();
    let cpu = busy()?.saturating_sub(before);
    drop(watchdog);
    if output.status.success() {
        Ok(Cost { wall, cpu })
    } else {
        Err(WorldError::Failed {
            command: shown,
            status: output.status,
            output: format!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            ),
        })
    }
}

/// The processor time that the machine has spent since it started.
pub(super) fn busy() -> Result<Duration, WorldError> {
    let stat = std::fs::read_to_string("/proc/stat").map_err(|source| WorldError::Io {
        what: "/proc/stat".to_owned(),
        source,
    })?;
    Ok(busy_of(&stat))
}

/// user + nice + system + irq + softirq of the first line; idle, waiting and stolen time are nobody's work.
fn busy_of(stat: &str) -> Duration {
    let ticks: u64 = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_ascii_whitespace()
        .skip(1)
        .enumerate()
        .filter(|(at, _)| matches!(at, 0 | 1 | 2 | 5 | 6))
        .filter_map(|(_, field)| field.parse::<u64>().ok())
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS_PER_SECOND)
}

/// The middle one by wall time, with the mean of the processor time: its steps are too coarse for a median.
pub(super) fn typical(costs: &[Cost]) -> Cost {
    let mut walls: Vec<Duration> = costs.iter().map(|cost| cost.wall).collect();
    walls.sort_unstable();
    let count = u32::try_from(costs.len()).unwrap_or(u32::MAX).max(1);
    Cost {
        wall: walls
            .get((walls.len().max(1) - 1) / 2)
            .copied()
            .unwrap_or_default(),
        cpu: costs
            .iter()
            .copied()
            .fold(Cost::default(), Cost::add)
            .div(count)
            .cpu,
    }
}

/// The bytes that a folder occupies: blocks, with a file of several names counted once.
pub(super) fn occupied(folder: &Path) -> Result<u64, WorldError> {
    use std::os::unix::fs::MetadataExt;

    let failed = |path: &Path| {
        let what = path.display().to_string();
        move |source| WorldError::Io { what, source }
    };
    let mut visited = std::collections::HashSet::new();
    let mut folders = vec![folder.to_owned()];
    let mut blocks = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).map_err(failed(&folder))? {
            let entry = entry.map_err(failed(&folder))?;
            let path = entry.path();
            let meta = path.symlink_metadata().map_err(failed(&path))?;
            if meta.is_dir() {
                folders.push(path);
            }
            if meta.nlink() == 1 || meta.is_dir() || visited.insert((meta.dev(), meta.ino())) {
                blocks += meta.blocks();
            }
        }
    }
    Ok(blocks * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_idle_time_are_not_work() {
        let stat = "cpu  100 2 30 9999 888 4 5 77 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_of(stat), Duration::from_millis(1410));
    }

    #[test]
    fn the_typical_cost_is_the_middle_wall_and_the_mean_of_the_cpu() {
        let cost = |wall, cpu| Cost {
            wall: Duration::from_millis(wall),
            cpu: Duration::from_millis(cpu),
        };
        let costs = [cost(900, 10), cost(10, 10), cost(20, 40)];
        assert_eq!(typical(&costs), cost(20, 20));
        assert_eq!(typical(&[]), Cost::default());
    }

    #[test]
    fn a_file_with_two_names_occupies_its_blocks_once() {
        let folder = std::env::temp_dir().join(format!("xtask-occupied-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("below")).unwrap();
        std::fs::write(folder.join("one"), vec![1; 1 << 20]).unwrap();
        let once = occupied(&folder).unwrap();
        std::fs::hard_link(folder.join("one"), folder.join("below/two")).unwrap();
        let twice = occupied(&folder).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(once >= 1 << 20);
        assert_eq!(once, twice);
    }
}
