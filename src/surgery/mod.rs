//! Graph and cut → new graph; the closed-form repair of what a cut leaves. `coupling` says what may be
//! cut; `ladder` decides what is.

mod aim;
pub mod attention;
mod cut;
mod held_out;
pub mod low_rank;
pub mod merge;
mod norms;
mod rectified;
pub mod refit;
pub mod repair;
mod statistics;
mod tell;
pub mod whitened;
mod work;

pub use aim::{plus, scale_after};
pub use cut::{Cut, CutError, Gone, apply, gone};
pub use work::work;
