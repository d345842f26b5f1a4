package pii

// sqlState gives a code that is fit to print, and the code with its names (PostgreSQL documentation, appendix A).
func sqlState(code string) (clean, text string) {
	if !wellFormed(code) {
		return "?????", "error without a well-formed SQLSTATE"
	}
	text = code
	if name := conditions[code]; name != "" {
		text += " " + name
	}
	if class := classes[code[:2]]; class != "" {
		text += " (" + class + ")"
	}
	return code, text
}

// wellFormed keeps out whatever a server that is not PostgreSQL puts in the field.
func wellFormed(code string) bool {
	if len(code) != 5 {
		return false
	}
	for _, c := range []byte(code) {
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return true
}

var classes = map[string]string{
	"00": "successful completion", "01": "warning", "02": "no data", "03": "SQL statement not yet complete",
	"08": "connection exception", "09": "triggered action exception", "0A": "feature not supported",
	"0B": "invalid transaction initiation", "0F": "locator exception", "0L": "invalid grantor", "0P": "invalid role specification",
	"0Z": "diagnostics exception", "20": "case not found", "21": "cardinality violation", "22": "data exception",
	"23": "integrity constraint violation", "24": "invalid cursor state", "25": "invalid transaction state",
	"26": "invalid SQL statement name", "27": "triggered data change violation", "28": "invalid authorization specification",
	"2B": "dependent privilege descriptors still exist", "2D": "invalid transaction termination", "2F": "SQL routine exception",
	"34": "invalid cursor name", "38": "external routine exception", "39": "external routine invocation exception",
	"3B": "savepoint exception", "3D": "invalid catalog name", "3F": "invalid schema name", "40": "transaction rollback",
	"42": "syntax error or access rule violation", "44": "WITH CHECK OPTION violation", "53": "insufficient resources",
	"54": "program limit exceeded", "55": "object not in prerequisite state", "57": "operator intervention", "58": "system error",
	"70": "interrupted", "F0": "configuration file error", "HY": "general error", "HV": "foreign data wrapper error", "P0": "PL/pgSQL error", "XX": "internal error",
}

// conditions are the names that an operator meets.
var conditions = map[string]string{
	"08001": "sqlclient_unable_to_establish_sqlconnection", "08003": "connection_does_not_exist",
	"08004": "sqlserver_rejected_establishment_of_sqlconnection", "08006": "connection_failure", "08P01": "protocol_violation",
	"22001": "string_data_right_truncation", "22003": "numeric_value_out_of_range", "22007": "invalid_datetime_format",
	"22P02": "invalid_text_representation", "22021": "character_not_in_repertoire", "23502": "not_null_violation",
	"23503": "foreign_key_violation", "23505": "unique_violation", "23514": "check_violation", "23P01": "exclusion_violation",
	"25006": "read_only_sql_transaction", "25P02": "in_failed_sql_transaction", "28000": "invalid_authorization_specification",
	"28P01": "invalid_password", "3D000": "invalid_catalog_name", "3F000": "invalid_schema_name", "40001": "serialization_failure",
	"40P01": "deadlock_detected", "42501": "insufficient_privilege", "42601": "syntax_error", "42703": "undefined_column",
	"42704": "undefined_object", "42710": "duplicate_object", "42804": "datatype_mismatch", "42883": "undefined_function",
	"42P01": "undefined_table", "42P07": "duplicate_table", "53100": "disk_full", "53200": "out_of_memory",
	"53300": "too_many_connections", "53400": "configuration_limit_exceeded", "55000": "object_not_in_prerequisite_state",
	"55006": "object_in_use", "55P03": "lock_not_available", "57014": "query_canceled", "57P01": "admin_shutdown",
	"57P02": "crash_shutdown", "57P03": "cannot_connect_now", "57P05": "idle_session_timeout", "58030": "io_error", "58P01": "undefined_file",
	"P0001": "raise_exception", "XX000": "internal_error", "XX001": "data_corrupted", "XX002": "index_corrupted",
}
