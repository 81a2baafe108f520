//! Open Inference Protocol v2 ↔ typed requests and answers.
