//go:build unix && !linux

package main

import "os/exec"

// dieWithParent does nothing where the kernel has no such service.
func dieWithParent() error { return nil }

// dieWithUs does nothing either.
func dieWithUs(*exec.Cmd) {}
