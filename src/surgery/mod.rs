//! Graph and cut → new graph, refit, pre- and postconditions.
