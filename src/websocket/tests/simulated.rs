//! Random operations over a pipe that cuts, delays, stalls and breaks, in virtual time.
