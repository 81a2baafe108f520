//! Which channels must go together: coupled groups, their index maps, what is frozen and because of what.
