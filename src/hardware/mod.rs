//! What a box is: processors, memory, thermal state, devices; parsers of captured facts.
