-- Scripts are built by joining includes, so that names cross files: the built text is what luacheck reads (make lua-lint).
std = "lua51"
read_globals = { "redis", "struct", "KEYS", "ARGV" }
max_line_length = 130
