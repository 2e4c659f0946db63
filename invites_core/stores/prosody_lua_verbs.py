"""The Lua of the prelude that does what each verb of the store asks for.

Its lines are joined by spaces, so there is no comment in it; what it does is said in the module of the prelude.
"""

from __future__ import annotations

from typing import Final

__all__ = ["LUA_VERBS"]

LUA_VERBS: Final = """
local verbs = {};
function verbs.hosts()
  local names = {};
  for i, host in ipairs(find_hosts()) do names[i] = host.name; end
  return { hosts = names };
end
function verbs.apis()
  local names = {};
  for _, host in ipairs(find_hosts()) do
    local api = get_module(host.name, "invites_api");
    local keys = api and read(api.module:open_store("invite_api_keys"):get(nil));
    if keys and next(keys) ~= nil then names[#names + 1] = host.name; end
  end
  return { hosts = names };
end
function verbs.find(call)
  local row, _, host = find_row(call.token);
  return { host = host and host.name }, { show(row, call.history) };
end

local function make_row(group, token)
  local row = json.decode(group.row);
  row.token, row.uri = token, group.uri[1]..token..group.uri[2];
  local data = row.additional_data;
  if data.roles and roles_are_a_map then
    local map = {};
    for _, role in ipairs(data.roles) do map[role] = true; end
    data.roles = map;
  end
  return row;
end
function verbs.add(call)
  local hosts, by_name, made = find_hosts(), {}, {};
  for _, host in ipairs(hosts) do by_name[host.name] = host; end
  local function is_there(token)
    for _, host in ipairs(hosts) do
      for _, store in ipairs(STORES) do
        if get_row(open_shelf(host, store), token) then return true; end
      end
    end
  end
  for _, group in ipairs(call.groups) do
    local host = by_name[group.host] or find_hosts(group.host)[1];
    for _, token in ipairs(group.tokens) do
      if not is_there(token) then made[#made + 1] = { host, group.store, make_row(group, token) };
      elseif not call.if_absent then fail("exists"); end
    end
  end
  local now = clock() * 1e6;
  for i, one in ipairs(made) do
    one[3].invites_api = one[3].invites_api or {};
    one[3].invites_api.added_at = ("%018.0f"):format(now + i);
    if one[3].expires ~= 0 then one[1].module:fire_event("invite-created", one[3]); end
  end
  for _, one in ipairs(made) do
    local host, store, row = one[1], one[2], one[3];
    if row.expires ~= 0 then own_row_of_user(host, row.token, row, row.expires); end
    open_shelf(host, store).changes[row.token] = row;
  end
  for _, host in ipairs(hosts) do save(host); end
  return {};
end

function verbs.redeem(call)
  local row, shelf, host = find_sound_row(call.token, call.host);
  if not row then return { outcome = "refused" }; end
  local known = get_redemption(row, call.id);
  if known then
    local outcome = known.released and "released" or known.by == call.redeemer and "repeated" or "conflict";
    return { outcome = outcome, host = host.name }, { show(row) };
  end
  local account = row.type ~= "roster" and (jid_node(row.jid) or (row.additional_data or {}).allow_reset);
  if get_state(row, call.now) ~= "pending" or (account and account ~= call.username) then
    return { outcome = "refused", host = host.name }, { show(row) };
  end
  if not row.reusable then
    announce_closing(shelf, call.token, row);
    save(host);
  end
  add_redemption(row, { id = call.id, by = call.redeemer, at = call.now });
  row.invites_api.uses = (row.invites_api.uses or 0) + 1;
  if not row.reusable then close(host, call.token, row, call.now); end
  shelf.changes[call.token] = row;
  save(host);
  return { outcome = "redeemed", host = host.name }, { show(row) };
end

function verbs.release(call)
  local row, shelf, host = find_sound_row(call.token, call.host);
  if not row then return {}; end
  local known = get_redemption(row, call.id);
  if not (known and known.released) then
    if known then
      local own = row.invites_api;
      known.released = call.now;
      own.uses = own.uses - 1;
      if own.expires and not own.revoked_by then
        own_row_of_user(host, call.token, row, own.expires);
        row.expires, own.expires, own.closed_at = own.expires, nil, nil;
      end
    else
      add_redemption(row, { id = call.id, released = call.now });
    end
    shelf.changes[call.token] = row;
    save(host);
  end
  return { host = host.name }, { show(row) };
end

function verbs.revoke(call)
  local row, shelf, host = find_sound_row(call.token, call.host);
  if not row then return { revoked = false }; end
  local revoked = get_state(row, call.now) == "pending";
  if revoked then
    announce_closing(shelf, call.token, row);
    save(host);
    row.invites_api = row.invites_api or {};
    row.invites_api.revoked_by = call.by;
    close(host, call.token, row, call.now);
    shelf.changes[call.token] = row;
    save(host);
  end
  return { revoked = revoked, host = host.name }, { show(row) };
end

function verbs.list(call)
  local host, found = find_hosts(call.host)[1], {};
  scan(host, call.most, function(token, row, shelf)
    if (not call.source or is_sound(row) and get_source(row) == call.source)
    and (not call.state or is_sound(row) and get_state(row, call.now) == call.state) then
      local position = get_position(token, row);
      if not call.cursor or position < call.cursor then
        found[#found + 1] = { position = position, token = token, row = row, shelf = shelf };
      end
    end
  end);
  table.sort(found, down);
  local tokens, rows, size, last = {}, {}, 0, 0;
  while last < #found and last < call.limit and size < MOST_SHOWN do
    last = last + 1;
    local one = found[last];
    if not is_sound(one.row) or not is_gone(one.shelf, one.token, one.row) then
      tokens[#tokens + 1] = one.token:match("^[%w_-]+$") or "";
      rows[#rows + 1] = show(one.row);
      size = size + #rows[#rows];
    end
  end
  return { tokens = tokens, next = last < #found and found[last].position or nil }, rows;
end

local function find_after(host, cursor, call, admits)
  local found = {};
  scan(host, call.most, function(token, row, shelf)
    local position = get_position(token, row);
    if (not cursor or position > cursor) and admits(row) then
      found[#found + 1] = { position = position, token = token, row = row, shelf = shelf };
    end
  end);
  table.sort(found, up);
  return found, math.min(#found, call.limit);
end

function verbs.revoke_from(call)
  local host, changed = find_hosts(call.host)[1], 0;
  local found, count = find_after(host, call.cursor, call, function(row)
    if not is_sound(row) then return false; end
    local state = get_state(row, call.now);
    return (state == "pending" or state == "used") and not (row.invites_api or {}).revoked_by
      and get_source(row) == call.source;
  end);
  for i = 1, count do
    local one = found[i];
    one.state = not is_gone(one.shelf, one.token, one.row) and get_state(one.row, call.now);
    if one.state == "pending" then announce_closing(one.shelf, one.token, one.row); end
  end
  save(host);
  for i = 1, count do
    local one = found[i];
    local row = one.row;
    if one.state then
      row.invites_api = row.invites_api or {};
      row.invites_api.revoked_by = call.by;
      if one.state == "pending" then close(host, one.token, row, call.now); changed = changed + 1; end
      one.shelf.changes[one.token] = row;
    end
  end
  save(host);
  return { changed = changed, next = #found > count and found[count].position or nil };
end

function verbs.purge(call)
  local hosts, changed = {}, 0;
  for _, host in ipairs(find_hosts()) do
    host.position = mark_of(host);
    if not call.mark or host.position >= call.mark then hosts[#hosts + 1] = host; end
  end
  table.sort(hosts, up);
  local host, following = hosts[1], hosts[2] and hosts[2].position;
  if not host then return { changed = 0 }; end
  local is_read, found, count = pcall(
    find_after, host, host.position == call.mark and call.cursor, call, is_sound
  );
  if not is_read then
    if type(found) ~= "table" or found.failed ~= "many" then error(found, 0); end
    return { changed = 0, many = true, mark = following };
  end
  for i = 1, count do
    local one = found[i];
    local own = one.row.invites_api or {};
    local over = own.closed_at or own.expires or one.row.expires;
    if over and over ~= NEVER and over < call.before then
      own_row_of_user(host, one.token, one.row, false);
      one.shelf.changes[one.token] = false;
      changed = changed + 1;
    end
  end
  save(host);
  if #found > count then return { changed = changed, mark = host.position, next = found[count].position }; end
  return { changed = changed, mark = following };
end

local function run(verb, text)
  wrote = false;
  local ok, answer = pcall(function()
    local told, rows = verb(json.decode(base64.decode(text)));
    rows = rows or {};
    table.insert(rows, 1, base64.encode(json.encode(told)));
    return table.concat(rows, ",");
  end);
  if ok then return answer; end
  if type(answer) ~= "table" then answer = { failed = "lua", detail = tostring(answer) }; end
  answer.wrote = wrote;
  return base64.encode(json.encode(answer));
end
return function(name, text) return run(verbs[name], text); end
"""
