//! The QM-FRG: nodes, edges, clusters, representatives and certificates.

pub mod selection;
