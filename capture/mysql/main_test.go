package mysql

import (
	"testing"

	"lethe/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }
