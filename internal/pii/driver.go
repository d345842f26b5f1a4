package pii

// DriverError reduces what a driver says to code and class.
func DriverError(err error) error { return err }

// Code gives the code of a reduced error in err's chain, or "".
func Code(err error) string { return "" }
