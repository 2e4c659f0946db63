-- Stands in for the community module of this name, on which mod_invites_register_web depends and which Debian 12 lacks.
module:set_global();

function get_policy() return { length = 8 }; end
function check_password(password) --luacheck: ignore 131/check_password
	if #password < 8 then return nil, "Password is too short (minimum 8 characters)"; end
	return true;
end
