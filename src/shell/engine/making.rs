//! How a session is made: the runtime's options, and the execution provider that is asked for.

use std::sync::Arc;

use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use super::session::{failed, guarded};
use super::{EngineOptions, Library, Runtime, cann, placed};
use crate::config::Provider;
use crate::onnx::{ExecError, Model};

/// Whether a caller may choose sizes. The runtime keeps a memory plan for every combination of sizes
/// that it has seen: without bound where clients choose them.
pub(super) fn has_free_dims(model: &Model) -> bool {
    use crate::onnx::proto::tensor_shape_proto::dimension::Value as Size;
    use crate::onnx::proto::type_proto::Value as Type;
    model.graph().input.iter().any(|input| match &input.r#type.value {
        Some(Type::TensorType(tensor)) => {
            let fixed = |size: &Option<Size>| matches!(size, Some(Size::DimValue(_)));
            !tensor.shape.is_set() || tensor.shape.dim.iter().any(|dim| !fixed(&dim.value))
        }
        _ => true,
    })
}

/// Asks for the CPU by name. Of whoever names no provider, the binding has the runtime choose one: any that is
/// registered in the process, and a plugin that attaches to the processor even where the processor is
/// preferred.
pub(super) fn on_cpu(builder: SessionBuilder, runtime: &Runtime) -> ort::Result<SessionBuilder> {
    let cpu = Provider::Cpu;
    let is_cpu = |name: &str| name == cpu.execution_provider();
    match runtime.environment().devices().find(|device| device.ep().is_ok_and(is_cpu)) {
        Some(device) => Ok(builder.with_devices([device], None)?),
        // A build without devices has nothing to choose from either.
        None => Ok(builder),
    }
}

/// What fails while a provider is asked for speaks against it, not against the model.
pub(super) const PROVIDER: &str = "preparing the execution provider";

/// How a session is to be made, and the library that must outlive it.
pub(super) fn builder(
    runtime: &Runtime,
    options: &EngineOptions,
    free_dims: bool,
) -> Result<(Option<Arc<Library>>, SessionBuilder), ExecError> {
    let plain = guarded("preparing a session", || plain_builder(runtime, options, free_dims))?;
    let cache = options.cache.as_deref();
    match &options.provider {
        Provider::Cpu => {
            let ready = || on_cpu(plain, runtime);
            Ok((None, guarded(PROVIDER, ready)?))
        }
        // Of the others the runtime has the CPU take what they leave.
        Provider::Cann(cann) => {
            let ready = || cann::append(plain, runtime.library(), cann, cache);
            Ok((None, guarded(PROVIDER, ready)?))
        }
        Provider::Plugin(plugin) => {
            let library = Library::of(runtime, plugin).map_err(|e| failed(PROVIDER, e))?;
            let ready = || Ok(library.append(plain, plugin, cache));
            let ready = guarded(PROVIDER, ready)?.map_err(|error| failed(PROVIDER, error))?;
            Ok((Some(library), ready))
        }
    }
}

/// Asks for the provider without a model.
pub(super) fn check(runtime: &Runtime, options: &EngineOptions) -> Result<(), ExecError> {
    // What was asked for goes before the library that it is in.
    let (library, asked) = builder(runtime, options, false)?;
    drop(asked);
    drop(library);
    Ok(())
}

fn plain_builder(
    runtime: &Runtime,
    options: &EngineOptions,
    free_dims: bool,
) -> ort::Result<SessionBuilder> {
    let mut builder = SessionBuilder::new(runtime.environment())?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(options.intra_op_threads.max(1))?
        .with_inter_threads(1)?
        .with_intra_op_spinning(options.spinning)?
        .with_inter_op_spinning(options.spinning)?
        .with_memory_pattern(!free_dims)?;
    // The runtime counts CPUs from 1, and leaves the calling thread alone.
    let further = options.intra_op_threads.saturating_sub(1);
    let numbers = options.cpus.iter().cycle().skip(1).take(further);
    let affinities: Vec<String> = numbers.map(|cpu| (cpu + 1).to_string()).collect();
    if !affinities.is_empty() {
        let key = "session.intra_op_thread_affinities";
        builder = builder.with_config_entry(key, affinities.join(";"))?;
    }
    if let Some(profile) = &options.profile {
        builder = builder.with_profiling(profile)?;
    }
    for (axis, size) in &options.sizes {
        builder = builder.with_dimension_override(axis, *size as i64)?;
    }
    if options.provider != Provider::Cpu || options.profile.is_some() {
        builder = builder.with_config_entry(placed::KEY, "1")?;
    }
    Ok(builder)
}
