//! One file for each command.

mod apply;
mod bake;
mod diff;
mod down;
mod fmt;
mod history;
mod images;
mod inspect;
mod lock;
mod logs;
mod plan;
mod proxy;
mod prune;
mod rebake;
mod rollback;
mod sbom;
mod serve;
mod status;
mod supervise;
mod untag;
mod up;
mod validate;
mod verify;

use crate::args::{Args, Command};
use crate::failure::{Exit, Failure};

pub(crate) fn run(args: Args) -> Result<Exit, Failure> {
    match args.command {
        Command::Up(args) => up::run(args),
        Command::Down(args) => down::run(args),
        Command::Validate(args) => validate::run(args),
        Command::Fmt(args) => fmt::run(args),
        Command::Bake(args) => bake::run(*args),
        Command::Lock(args) => lock::run(args),
        Command::Images(args) => images::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Diff(args) => diff::run(args),
        Command::Sbom(args) => sbom::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Rebake(args) => rebake::run(args),
        Command::Plan(args) => plan::run(args),
        Command::Apply(args) => apply::run(args),
        Command::Rollback(args) => rollback::run(args),
        Command::Status(args) => status::run(args),
        Command::History(args) => history::run(args),
        Command::Logs(args) => logs::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Supervise(args) => supervise::run(args),
        Command::Proxy(args) => proxy::run(args),
    }
}
