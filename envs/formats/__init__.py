"""Ways of writing tool calls as text; `turnwise.envs.actions.FORMATS` names them."""
