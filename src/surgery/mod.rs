//! Graph and cut → new graph; the closed-form repair of what a cut leaves. `coupling` says what may be
//! cut; `ladder` decides what is.

mod aim;
mod cut;
mod norms;
mod rectified;
pub mod refit;
pub mod repair;
mod tell;

pub use aim::scale_after;
pub use cut::{Cut, CutError, Gone, apply, gone};
