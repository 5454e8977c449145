"""The checks of `spanloop doctor`: each promise of capture, proved in the present environment, with the fix if it is broken."""
