//! Removes channels at every place of their groups.
