//! A library of CANN that the provider is linked to and takes nothing from.
