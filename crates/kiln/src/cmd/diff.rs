//! `kiln diff`: what changed from one image to another.

use kiln_bake::{Change, Changed, ImageDiff, LayerSize};
use kiln_oci::Store;

use crate::failure::{Exit, Failure};
use crate::{args, named, output, settings, table};

/// More than this of one kind hides what matters; JSON has them all.
const SHOWN: usize = 200;

pub(crate) fn run(args: args::Diff) -> Result<Exit, Failure> {
    let root = settings::root(args.root)?;
    let store = Store::open_existing(&root)?;
    let (from, to) = (
        named::image(&store, &args.from)?,
        named::image(&store, &args.to)?,
    );
    let diff = kiln_bake::diff(&store, &from, &to).map_err(|source| Failure::Compare {
        what: format!("`{}` and `{}`", args.from, args.to),
        source: Box::new(source),
    })?;
    if args.json.json {
        output::json(&diff)?;
    } else {
        for line in lines(&diff) {
            output::line(&line)?;
        }
    }
    Ok(Exit::Done)
}

fn lines(diff: &ImageDiff) -> Vec<String> {
    let ImageDiff {
        from,
        to,
        packages,
        files,
        config,
        layers_removed,
        layers_added,
    } = diff;
    if from == to {
        return vec!["the two are the same image".to_owned()];
    }
    let mut lines = Vec::new();
    section(&mut lines, "packages", packages.iter().map(changed));
    section(&mut lines, "configuration", config.iter().map(changed));
    let files = files.iter().map(|file| {
        let sign = match file.change {
            Change::Added => "+",
            Change::Removed => "-",
            Change::Changed => "~",
        };
        let what = file.what.join(", ");
        format!("{sign} {}  {what}", file.path)
            .trim_end()
            .to_owned()
    });
    section(&mut lines, "files", files);
    let layer = |sign: &'static str| {
        move |layer: &LayerSize| {
            let size = table::size(layer.size);
            format!("{sign} {}  {size}", layer.diff_id.short())
        }
    };
    let removed = layers_removed.iter().map(layer("-"));
    let layers: Vec<String> = removed.chain(layers_added.iter().map(layer("+"))).collect();
    section(&mut lines, "layers", layers.into_iter());
    lines
}

fn section(lines: &mut Vec<String>, name: &str, of: impl ExactSizeIterator<Item = String>) {
    let count = of.len();
    if count == 0 {
        return;
    }
    lines.push(format!("{name}: {count}"));
    lines.extend(of.take(SHOWN).map(|line| format!("  {line}")));
    if count > SHOWN {
        lines.push(format!("  and {} more: `--json` has them", count - SHOWN));
    }
}

fn changed(change: &Changed) -> String {
    let Changed {
        name,
        from,
        to,
        cves,
    } = change;
    let mended = match &cves[..] {
        [] => String::new(),
        cves => format!("  security: {}", cves.join(", ")),
    };
    match (from, to) {
        (None, Some(to)) => format!("+ {name}  {to}"),
        (Some(from), None) => format!("- {name}  {from}"),
        (from, to) => {
            let text = |value: &Option<String>| value.clone().unwrap_or_default();
            format!("~ {name}  {} → {}{mended}", text(from), text(to))
        }
    }
}
