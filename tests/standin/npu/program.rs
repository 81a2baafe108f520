//! A compiled part of a graph: operators in order, and the values that go between them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::abi::{Api, Opaque};
use super::compute::{self, Held};
use super::graph::{self, Node, Value, checked};
use super::ops::Op;
use super::{cost, play};

pub struct Program {
    steps: Vec<Step>,
    /// Values, the inputs first.
    values: usize,
    inputs: usize,
    /// Which values go out.
    outputs: Vec<usize>,
    /// Shapes of inputs that the device's program was built for.
    built: Mutex<BTreeSet<Vec<Vec<usize>>>>,
}

struct Step {
    op: Op,
    inputs: Vec<Option<usize>>,
    output: usize,
    /// Values that nobody reads later.
    spent: Vec<usize>,
}

impl Program {
    /// Of nodes in topological order, with the inputs and outputs of the node that stands for them.
    pub fn new(nodes: &[Node], inputs: &[Value], outputs: &[Value]) -> Result<Self, String> {
        let mut places: BTreeMap<&str, usize> = BTreeMap::new();
        for (at, input) in inputs.iter().enumerate() {
            places.insert(&input.name, at);
        }
        let mut values = inputs.len();
        let mut steps = Vec::new();
        for node in nodes {
            let op = Op::of(node).ok_or_else(|| format!("{} was never claimed", node.kind))?;
            let place = |value: &Value| match value.name.as_str() {
                "" => Ok(None),
                name => places.get(name).copied().map(Some).ok_or(format!("nobody makes {name:?}")),
            };
            let read = node.inputs.iter().map(place).collect::<Result<_, String>>()?;
            places.insert(&node.outputs[0].name, values);
            steps.push(Step { op, inputs: read, output: values, spent: Vec::new() });
            values += 1;
        }
        let place = |value: &Value| {
            let found = places.get(value.name.as_str()).copied();
            found.ok_or_else(|| format!("nobody makes the output {:?}", value.name))
        };
        let outputs: Vec<usize> = outputs.iter().map(place).collect::<Result<_, String>>()?;
        let mut needed: BTreeSet<usize> = outputs.iter().copied().collect();
        for step in steps.iter_mut().rev() {
            let read = step.inputs.iter().flatten();
            step.spent = read.copied().filter(|value| needed.insert(*value)).collect();
        }
        Ok(Self { steps, values, inputs: inputs.len(), outputs, built: Mutex::default() })
    }

    /// Runs on what the runtime gives, and takes as long as the device would.
    ///
    /// # Safety
    /// `context` is that of a run of this program.
    pub unsafe fn run(&self, api: Api, context: *mut c_void) -> Result<(), String> {
        play::begin("Compute")?;
        if !play::is_there() {
            return Err(play::lost("Compute"));
        }
        // SAFETY: the caller's promise; the inputs live until the run ends.
        let inputs = unsafe { self.inputs(api, context) }?;
        self.build(&inputs);
        let begun = Instant::now();
        let mut values: Vec<Option<Held<'_>>> = inputs;
        values.resize(self.values, None);
        let mut nanoseconds = 0.0;
        for step in &self.steps {
            let read: Vec<Option<&Held<'_>>> =
                step.inputs.iter().map(|at| at.and_then(|at| values[at].as_ref())).collect();
            let output = compute::run(&step.op, &read)?;
            let shapes: Vec<&[usize]> =
                read.iter().map(|held| held.map_or(&[][..], |held| &held.shape)).collect();
            nanoseconds += cost::nanoseconds(&step.op, &shapes, &output.shape);
            values[step.output] = Some(output);
            step.spent.iter().for_each(|at| values[*at] = None);
        }
        for (at, value) in self.outputs.iter().enumerate() {
            let held = values[*value].as_ref().ok_or("an output was not computed")?;
            // SAFETY: the caller's promise.
            unsafe { give(api, context, at, held) }?;
        }
        play::wait(begun, nanoseconds);
        if play::is_there() { Ok(()) } else { Err(play::lost("Synchronize")) }
    }

    fn build(&self, inputs: &[Option<Held<'_>>]) {
        let shape = |held: &Option<Held<'_>>| held.as_ref().map(|h| h.shape.clone());
        let shapes: Vec<Vec<usize>> = inputs.iter().filter_map(shape).collect();
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        if built.insert(shapes.clone()) {
            play::build(&shapes);
        }
    }

    /// # Safety
    /// As [`Program::run`].
    unsafe fn inputs<'r>(
        &self,
        api: Api,
        context: *mut c_void,
    ) -> Result<Vec<Option<Held<'r>>>, String> {
        let one = |at: usize| {
            let mut value = null();
            // SAFETY: the caller's promise; a value of the run lives until it ends.
            unsafe {
                checked(api, api.KernelContext_GetInput(context, at, &mut value))?;
                if value.is_null() { Ok(None) } else { lent(api, value).map(Some) }
            }
        };
        (0..self.inputs).map(one).collect()
    }
}

/// # Safety
/// `value` is a tensor of f32 of the runtime, and lives as long as what is returned.
unsafe fn lent<'r>(api: Api, value: Opaque) -> Result<Held<'r>, String> {
    let (mut info, mut rank, mut data) = (null_mut(), 0, null());
    // SAFETY: the caller's promise; the description is ours to release, once.
    unsafe {
        checked(api, api.GetTensorTypeAndShape(value, &mut info))?;
        let read = checked(api, api.GetDimensionsCount(info, &mut rank));
        let mut sizes = vec![0i64; rank];
        let read =
            read.and_then(|()| checked(api, api.GetDimensions(info, sizes.as_mut_ptr(), rank)));
        api.ReleaseTensorTypeAndShapeInfo(info);
        read?;
        checked(api, api.GetTensorData(value, &mut data))?;
        let shape: Vec<usize> = sizes.iter().map(|size| *size as usize).collect();
        let count = shape.iter().product();
        let data: &[f32] =
            if count == 0 { &[] } else { std::slice::from_raw_parts(data.cast(), count) };
        Ok(Held { shape, data: data.into() })
    }
}

/// # Safety
/// `context` is that of a run whose outputs are tensors of f32.
unsafe fn give(api: Api, context: *mut c_void, at: usize, held: &Held<'_>) -> Result<(), String> {
    let shape: Vec<i64> = held.shape.iter().map(|size| *size as i64).collect();
    let (mut value, mut data) = (null_mut(), null_mut());
    // SAFETY: the runtime makes a tensor of this shape, as many elements as there are here.
    unsafe {
        let made =
            api.KernelContext_GetOutput(context, at, shape.as_ptr(), shape.len(), &mut value);
        checked(api, made)?;
        checked(api, api.GetTensorMutableData(value, &mut data))?;
        let from = held.data.as_ptr();
        data.cast::<f32>().copy_from_nonoverlapping(from, held.data.len());
    }
    Ok(())
}

/// The nodes of a graph that are to become one program.
///
/// # Safety
/// `graph` is one that the runtime hands over for this call.
pub unsafe fn read(api: Api, graph: Opaque) -> Result<Vec<Node>, String> {
    // SAFETY: the caller's promise.
    unsafe {
        let nodes = graph::nodes(api, graph)?;
        nodes.into_iter().map(|node| graph::node(api, node)).collect()
    }
}
