//! Numbers.

use super::Kind::{List, Number, Text, Whole};
use super::{Arguments, Fault, Function, fault, function};
use crate::reader::Reader;
use crate::value::{EXACT, Value};

pub(super) const FUNCTIONS: &[Function] = &[
    function("abs", &[("number", Number)], |_, a| {
        Ok(Value::Number(a.number(0).abs()))
    }),
    function("ceil", &[("number", Number)], |_, a| {
        Ok(Value::Number(a.number(0).ceil()))
    }),
    function("floor", &[("number", Number)], |_, a| {
        Ok(Value::Number(a.number(0).floor()))
    }),
    function("log", &[("number", Number), ("base", Number)], |_, a| {
        let (number, base) = (a.number(0), a.number(1));
        if number <= 0.0 {
            return fault(
                0,
                "not above 0",
                "a number above 0",
                "write a number above 0",
            );
        }
        if base <= 0.0 || base == 1.0 {
            let expected = "a base above 0 other than 1";
            return fault(1, "no base of a logarithm", expected, "write 2, 10 or such");
        }
        Ok(Value::Number(number.ln() / base.ln()))
    }),
    function("max", &[("number", Number)], |_, a| {
        let all = (0..a.values.len()).map(|index| a.number(index));
        Ok(Value::Number(all.fold(f64::NEG_INFINITY, f64::max)))
    })
    .more("numbers", Number),
    function("min", &[("number", Number)], |_, a| {
        let all = (0..a.values.len()).map(|index| a.number(index));
        Ok(Value::Number(all.fold(f64::INFINITY, f64::min)))
    })
    .more("numbers", Number),
    function("parseint", &[("text", Text), ("base", Whole)], parseint),
    function(
        "pow",
        &[("number", Number), ("exponent", Number)],
        |_, a| {
            let power = a.number(0).powf(a.number(1));
            if power.is_finite() {
                Ok(Value::Number(power))
            } else {
                fault(
                    1,
                    "what has no finite result",
                    "a smaller exponent",
                    "write a smaller one",
                )
            }
        },
    ),
    function("signum", &[("number", Number)], |_, a| {
        let number = a.number(0);
        Ok(Value::Number(if number == 0.0 {
            0.0
        } else {
            number.signum()
        }))
    }),
    function("sum", &[("numbers", List)], |_, a| {
        if a.list(0).is_empty() {
            return fault(
                0,
                "an empty list",
                "at least one number",
                "write `sum(concat([0], …))`",
            );
        }
        let mut sum = 0.0;
        for item in a.list(0) {
            match item.value.number() {
                Some(number) => sum += number,
                None => {
                    let found = format!("a list with {}", item.value.kind());
                    return fault(0, found, "a list of numbers", "write numbers only");
                }
            }
        }
        Ok(Value::Number(sum))
    }),
];

fn parseint(_: &mut Reader<'_>, a: &Arguments) -> Result<Value, Fault> {
    let (text, base) = (a.text(0), a.whole(1));
    let Some(radix) = u32::try_from(base).ok().filter(|b| (2..=36).contains(b)) else {
        // Rust's own parser knows digits up to `z`; larger bases are of no use here.
        return fault(
            1,
            base.to_string(),
            "a base from 2 to 36",
            "write 2, 8, 10 or 16",
        );
    };
    match i64::from_str_radix(text, radix) {
        Ok(number) if (number as f64).abs() <= EXACT => Ok(Value::Number(number as f64)),
        _ => fault(
            0,
            format!("`{text}`"),
            format!("a whole number up to 2^53 in base {base}"),
            "write digits of that base",
        ),
    }
}
