//! The execution provider of one session: which nodes it takes, and the programs that it makes of them.

use std::ffi::{c_char, c_void};
use std::ptr::{null, null_mut};

use super::abi::{self, Api, ComputeInfo, Ep, EpApi, FusionOptions, Opaque, Status};
use super::graph::{self, checked};
use super::ops::Op;
use super::program::{self, Program};
use super::{NAME, play, told};

#[repr(C)]
struct Provider {
    table: Ep,
    api: Api,
    ep_api: EpApi,
}

#[repr(C)]
struct Compiled {
    table: ComputeInfo,
    api: Api,
    program: Program,
}

pub fn create(api: Api, ep_api: EpApi) -> *mut Ep {
    let table = Ep {
        ort_version_supported: abi::VERSION,
        GetName: name,
        GetCapability: capability,
        Compile: compile,
        ReleaseNodeComputeInfos: release_compiled,
        later: [null(); 21],
    };
    Box::into_raw(Box::new(Provider { table, api, ep_api })).cast()
}

/// # Safety
/// `ep` comes from [`create`] and is used no more.
pub unsafe fn release(ep: *mut Ep) {
    if !ep.is_null() {
        // SAFETY: the caller's promise.
        drop(unsafe { Box::from_raw(ep.cast::<Provider>()) });
    }
}

unsafe extern "C" fn name(_: *const Ep) -> *const c_char {
    NAME.as_ptr()
}

unsafe extern "C" fn capability(ep: *mut Ep, graph: Opaque, support: *mut c_void) -> Status {
    // SAFETY: `ep` is one of ours; the graph and what is told of it are the runtime's, for this call.
    unsafe {
        let provider = &*ep.cast::<Provider>();
        let done = provider.claim(graph, support);
        told(provider.api, done, abi::EP_FAIL)
    }
}

impl Provider {
    /// Takes every run of neighbours, in topological order, that it can compute: no path leaves such a run and
    /// comes back to it.
    ///
    /// # Safety
    /// As [`capability`] is called.
    unsafe fn claim(&self, graph: Opaque, support: *mut c_void) -> Result<(), String> {
        let claimed = play::claimed();
        let options = FusionOptions {
            ort_version_supported: abi::VERSION,
            drop_constant_initializers: false,
        };
        // SAFETY: the caller's promise.
        unsafe {
            let mut taken: Vec<(Opaque, bool)> = Vec::new();
            for node in graph::nodes(self.api, graph)? {
                let read = graph::node(self.api, node)?;
                taken.push((node, claimed.contains(&read.kind) && Op::of(&read).is_some()));
            }
            for run in taken.chunk_by(|(_, a), (_, b)| a == b).filter(|run| run[0].1) {
                let nodes: Vec<Opaque> = run.iter().map(|(node, _)| *node).collect();
                let (first, count) = (nodes.as_ptr(), nodes.len());
                let told =
                    self.ep_api.EpGraphSupportInfo_AddNodesToFuse(support, first, count, &options);
                checked(self.api, told)?;
            }
        }
        Ok(())
    }

    /// # Safety
    /// As [`compile`] is called.
    unsafe fn compiled(&self, graph: Opaque, fused: Opaque) -> Result<Box<Compiled>, String> {
        // SAFETY: the caller's promise.
        let (nodes, inputs, outputs) = unsafe {
            let nodes = program::read(self.api, graph)?;
            (nodes, graph::inputs(self.api, fused)?, graph::outputs(self.api, fused)?)
        };
        let program = Program::new(&nodes, &inputs, &outputs)?;
        play::count(&play::OPERATORS, nodes.len() as u64);
        play::count(&play::PROGRAMS, 1);
        play::note(&format!("program of {} operators", nodes.len()));
        let table = ComputeInfo {
            ort_version_supported: abi::VERSION,
            CreateState: create_state,
            Compute: run,
            ReleaseState: release_state,
        };
        Ok(Box::new(Compiled { table, api: self.api, program }))
    }
}

unsafe extern "C" fn compile(
    ep: *mut Ep,
    graphs: *const Opaque,
    fused: *const Opaque,
    many: usize,
    to: *mut *mut ComputeInfo,
    _contexts: *mut *mut c_void,
) -> Status {
    // SAFETY: `ep` is one of ours, and the runtime gives `many` graphs, fused nodes and places.
    unsafe {
        let provider = &*ep.cast::<Provider>();
        let one = |at: usize| provider.compiled(*graphs.add(at), *fused.add(at));
        let all: Result<Vec<Box<Compiled>>, String> =
            play::begin("Compile").and_then(|()| (0..many).map(one).collect());
        let done = all.map(|all| {
            for (at, compiled) in all.into_iter().enumerate() {
                to.add(at).write(Box::into_raw(compiled).cast());
            }
        });
        told(provider.api, done, abi::EP_FAIL)
    }
}

unsafe extern "C" fn release_compiled(_: *mut Ep, all: *mut *mut ComputeInfo, many: usize) {
    for at in 0..many {
        // SAFETY: the runtime hands back what `compile` gave it, each once.
        unsafe {
            let compiled = *all.add(at);
            if !compiled.is_null() {
                drop(Box::from_raw(compiled.cast::<Compiled>()));
            }
        }
    }
}

unsafe extern "C" fn create_state(
    compiled: *mut ComputeInfo,
    _context: Opaque,
    to: *mut *mut c_void,
) -> Status {
    // SAFETY: a place to write to. A program keeps what it needs itself.
    unsafe { to.write(compiled.cast()) };
    null_mut()
}

unsafe extern "C" fn run(
    compiled: *mut ComputeInfo,
    _state: *mut c_void,
    context: *mut c_void,
) -> Status {
    // SAFETY: `compiled` is one of ours, and the context that of a run of it.
    unsafe {
        let compiled = &*compiled.cast::<Compiled>();
        let done = compiled.program.run(compiled.api, context);
        told(compiled.api, done, abi::EP_FAIL)
    }
}

unsafe extern "C" fn release_state(_: *mut ComputeInfo, _state: *mut c_void) {}
