//! The shapes of input that a model is to be served in, by the names of its free axes.

use std::collections::BTreeMap;

use crate::limits;

use super::error::Wrong;
use super::values::{Show, whole};

/// Sizes of free axes by their names, or as `input[axis]` where they have none: one shape.
pub type Sizes = BTreeMap<String, usize>;

/// Shapes in the order in which they were named; none stands twice. Empty: that of the sample alone.
///
/// Text: `none`, or axes with commas and shapes with semicolons: `batch=1, height=640; batch=4, height=640`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ServedShapes(pub Vec<Sizes>);

impl ServedShapes {
    /// The word for no shape at all.
    pub(super) const NONE: &'static str = "none";

    /// Axes on which all shapes agree: they can be fixed for good.
    pub fn common(&self) -> Sizes {
        let Some((first, others)) = self.0.split_first() else { return Sizes::new() };
        let agreed = |(axis, size): &(&String, &usize)| {
            others.iter().all(|other| other.get(*axis) == Some(size))
        };
        first.iter().filter(agreed).map(|(axis, size)| (axis.clone(), *size)).collect()
    }

    /// The sizes that a request has which is made up; none where no shape is named.
    pub fn first(&self) -> Sizes {
        self.0.first().cloned().unwrap_or_default()
    }
}

/// `batch=4, height=640`.
pub fn shape_text(shape: &Sizes) -> String {
    let one = |(axis, size): (&String, &usize)| format!("{axis}={size}");
    shape.iter().map(one).collect::<Vec<_>>().join(", ")
}

impl Show for ServedShapes {
    fn show(&self) -> String {
        if self.0.is_empty() {
            return Self::NONE.to_owned();
        }
        self.0.iter().map(shape_text).collect::<Vec<_>>().join("; ")
    }
}

pub(super) fn served_shapes(text: &str) -> Result<ServedShapes, Wrong> {
    let text = text.trim();
    if text.is_empty() || text == ServedShapes::NONE {
        return Ok(ServedShapes::default());
    }
    let mut shapes: Vec<Sizes> = Vec::new();
    for item in text.split(';').map(str::trim).filter(|item| !item.is_empty()) {
        let shape = shape(item)?;
        if shapes.contains(&shape) {
            let what = format!("the shape {} stands twice", shape_text(&shape));
            return Err(Wrong::new(what, "remove one"));
        }
        shapes.push(shape);
    }
    if shapes.len() > limits::COMPILED_SHAPES {
        let what = format!("{} shapes are too many", shapes.len());
        return Err(Wrong::new(what, format!("write at most {}", limits::COMPILED_SHAPES)));
    }
    Ok(ServedShapes(shapes))
}

fn shape(text: &str) -> Result<Sizes, Wrong> {
    let right = "write names of the model's free axes with their sizes, such as \
                 {batch: 1, height: 640}";
    let mut shape = Sizes::new();
    for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
        let wrong = || Wrong::new(format!("{item:?} is no axis with a size"), right);
        let (axis, size) = item.rsplit_once('=').ok_or_else(wrong)?;
        let (axis, size) = (axis.trim(), size.trim());
        if axis.is_empty() || axis.len() > limits::AXIS_NAME_BYTES || axis.contains('=') {
            return Err(wrong());
        }
        let size = whole(size, 1, limits::AXIS_SIZE)
            .map_err(|wrong| Wrong::new(format!("axis {axis}: {}", wrong.what), wrong.right))?;
        if shape.insert(axis.to_owned(), size).is_some() {
            return Err(Wrong::new(format!("axis {axis} stands twice"), "remove one"));
        }
    }
    if shape.is_empty() {
        return Err(Wrong::new("a shape names no axis", right));
    }
    if shape.len() > limits::TENSOR_RANK {
        let what = format!("a shape names {} axes", shape.len());
        return Err(Wrong::new(what, format!("write at most {}", limits::TENSOR_RANK)));
    }
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::super::ModelConfig;
    use super::super::schema::read_model;
    use super::*;

    fn sizes(all: &[(&str, usize)]) -> Sizes {
        all.iter().map(|(axis, size)| ((*axis).to_owned(), *size)).collect()
    }

    #[test]
    fn shapes_are_read_as_they_are_written_and_agree_where_they_say_the_same() {
        let text = "batch=1, height=640; batch=4, height=640, x[2]=48";
        let shapes = served_shapes(text).unwrap();
        let expected = [
            sizes(&[("batch", 1), ("height", 640)]),
            sizes(&[("batch", 4), ("height", 640), ("x[2]", 48)]),
        ];
        assert_eq!(shapes.0, expected);
        assert_eq!(shapes.show(), text);
        assert_eq!(shapes.common(), sizes(&[("height", 640)]));
        assert_eq!(shapes.first(), expected[0]);
        let one = served_shapes("n=3").unwrap();
        assert_eq!(one.common(), sizes(&[("n", 3)]));
        for nothing in ["none", ""] {
            let shapes = served_shapes(nothing).unwrap();
            assert_eq!((shapes.show().as_str(), shapes.common()), ("none", Sizes::new()));
        }
    }

    #[test]
    fn what_is_no_shape_is_named() {
        let many: Vec<String> =
            (1..=limits::COMPILED_SHAPES + 1).map(|n| format!("n={n}")).collect();
        let many = many.join(";");
        for (text, words) in [
            ("batch", "\"batch\" is no axis with a size"),
            ("batch=", "axis batch: "),
            ("batch=0", "axis batch: 0 is out of range"),
            ("batch=-1", "axis batch: "),
            ("=4", "is no axis"),
            ("n=1; n=1", "the shape n=1 stands twice"),
            ("n=1, n=2", "axis n stands twice"),
            (",", "names no axis"),
            (many.as_str(), "shapes are too many"),
        ] {
            let wrong = served_shapes(text).unwrap_err().what;
            assert!(wrong.contains(words), "{text}: {wrong}");
        }
    }

    /// What a policy of one line says, or all that is wrong with it.
    fn policy(shapes: &str) -> Result<ServedShapes, String> {
        let (found, problems) = read_model("policy.yaml", &format!("shapes: {shapes}"));
        if !problems.is_empty() {
            return Err(problems.iter().map(ToString::to_string).collect());
        }
        let mut config = ModelConfig::default();
        for one in found {
            (one.setting.set)(&mut config, &one.text).map_err(|wrong| wrong.what)?;
        }
        Ok(config.shapes)
    }

    #[test]
    fn files_have_a_list_of_maps_each_blamed_at_its_own_place() {
        let named = policy("[{batch: 1, height: 640}, {batch: 4, height: 640}]").unwrap();
        assert_eq!(policy("batch=1, height=640; batch=4, height=640").unwrap(), named);
        assert_eq!(named.0[1], sizes(&[("batch", 4), ("height", 640)]));
        for nothing in ["[]", "none"] {
            assert_eq!(policy(nothing).unwrap(), ServedShapes::default());
        }
        for (text, words) in [
            ("[{n: 1}, 3]", "policy.yaml:1:18: an item of `shapes` is not a map; write a list of"),
            ("[{n: 1}, {}]", "policy.yaml:1:18: a shape names no axis"),
            ("[{n: 1}, {n: 0}]", "policy.yaml:1:18: axis n: 0 is out of range"),
            ("{n: 1}", "`shapes` has a value of the wrong form; write a list of maps"),
            ("[{n: [1]}]", "`shapes.n` is not a single value"),
        ] {
            let wrong = policy(text).unwrap_err();
            assert!(wrong.contains(words), "{text}: {wrong}");
        }
    }
}
