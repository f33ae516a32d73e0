"""The functions of other packages, on the operators of this one."""
