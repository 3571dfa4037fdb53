//! Templates: literals, `${ … }`, `%{ if }` and `%{ for }`, and `~`, which takes the white space next to it away.

use std::ops::Range;

use hcl_edit::template::{Directive, Element, Strip, Template};

use crate::Source;
use crate::expression::{evaluate as expression_value, pairs, truth, with_names};
use crate::reader::{Reader, at};
use crate::value::{At, Value};

pub(crate) fn evaluate(
    reader: &mut Reader<'_>,
    template: &Template,
    span: Range<usize>,
) -> Option<At<Value>> {
    let elements: Vec<&Element> = template.iter().collect();
    // As in Terraform: `"${var.n}"` has the type of `var.n`.
    if let [Element::Interpolation(only)] = elements.as_slice() {
        return expression_value(reader, &only.expr).map(|found| at(found.value, span));
    }
    let text = text(reader, template, Strip::None, 0)?;
    reader.spend(text.len() / 16, &span)?;
    Some(at(Value::String(text), span))
}

/// `padding`: how many blanks at the start only move the places (see [`Reader::parse`]). `around`: whether what stands before and behind the template takes white space of it away.
fn text(
    reader: &mut Reader<'_>,
    template: &Template,
    around: Strip,
    padding: usize,
) -> Option<String> {
    let elements: Vec<&Element> = template.iter().collect();
    let mut text = String::new();
    let mut whole = true;
    for (index, element) in elements.iter().enumerate() {
        match element {
            Element::Literal(literal) => {
                let mut part: &str = literal.value();
                if index == 0 {
                    part = part.get(padding..).unwrap_or("");
                }
                let before = match index.checked_sub(1).and_then(|i| elements.get(i)) {
                    Some(element) => strip_after(element),
                    None => around.strip_end(),
                };
                if before {
                    part = part.trim_start();
                }
                let after = match elements.get(index + 1) {
                    Some(element) => strip_before(element),
                    None => around.strip_start(),
                };
                if after {
                    part = part.trim_end();
                }
                text.push_str(part);
            }
            Element::Interpolation(interpolation) => {
                match expression_value(reader, &interpolation.expr) {
                    None => whole = false,
                    Some(found) => match found.value.text() {
                        Some(part) => text.push_str(&part),
                        None => {
                            reader.wrong_type(
                                "the interpolated value",
                                &found.value,
                                found.span,
                                "a string, a number or a boolean",
                            );
                            whole = false;
                        }
                    },
                }
            }
            Element::Directive(directive) => match directive_text(reader, directive) {
                Some(part) => text.push_str(&part),
                None => whole = false,
            },
        }
    }
    whole.then_some(text)
}

/// What a part of a template takes away of the literals inside: behind its opening and before its closing.
fn inside(opening: Strip, closing: Strip) -> Strip {
    Strip::from((closing.strip_start(), opening.strip_end()))
}

fn directive_text(reader: &mut Reader<'_>, directive: &Directive) -> Option<String> {
    match directive {
        Directive::If(choice) => {
            let (yes, end) = (&choice.if_expr, choice.endif_expr.strip);
            if truth(reader, "the condition of `if`", &yes.cond_expr)? {
                let next = choice.else_expr.as_ref().map_or(end, |no| no.strip);
                return text(reader, &yes.template, inside(yes.strip, next), 0);
            }
            match &choice.else_expr {
                Some(no) => text(reader, &no.template, inside(no.strip, end), 0),
                None => Some(String::new()),
            }
        }
        Directive::For(each) => {
            let intro = &each.for_expr;
            let collection = expression_value(reader, &intro.collection_expr)?;
            let around = inside(intro.strip, each.endfor_expr.strip);
            let span = collection.span.clone();
            let mut all = String::new();
            for (key, value) in pairs(reader, collection)? {
                let key = intro.key_var.as_ref().map(|name| (name.as_str(), key));
                let value = (intro.value_var.as_str(), value.value);
                let part = with_names(reader, key, value, |reader| {
                    text(reader, &intro.template, around, 0)
                })?;
                reader.spend(1 + part.len() / 16, &span)?;
                all.push_str(&part);
            }
            Some(all)
        }
    }
}

fn strip_before(element: &Element) -> bool {
    match element {
        Element::Literal(_) => false,
        Element::Interpolation(interpolation) => interpolation.strip.strip_start(),
        Element::Directive(directive) => match directive.as_ref() {
            Directive::If(choice) => choice.if_expr.strip.strip_start(),
            Directive::For(each) => each.for_expr.strip.strip_start(),
        },
    }
}

fn strip_after(element: &Element) -> bool {
    match element {
        Element::Literal(_) => false,
        Element::Interpolation(interpolation) => interpolation.strip.strip_end(),
        Element::Directive(directive) => match directive.as_ref() {
            Directive::If(choice) => choice.endif_expr.strip.strip_end(),
            Directive::For(each) => each.endfor_expr.strip.strip_end(),
        },
    }
}

/// The text of a template file, with `values` as all that it sees.
pub(crate) fn file(
    reader: &mut Reader<'_>,
    source: Source,
    values: Vec<(String, Value)>,
    span: &Range<usize>,
) -> Option<String> {
    let padding = reader.sources.end();
    let template = reader.parse(source, hcl_edit::parser::parse_template)?;
    let before = std::mem::replace(&mut reader.scope, values);
    let isolated = std::mem::replace(&mut reader.isolated, true);
    let text = reader.deeper(span, |reader| text(reader, &template, Strip::None, padding));
    reader.scope = before;
    reader.isolated = isolated;
    text
}
