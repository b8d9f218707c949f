"""Operations that layers are made of: one plain-torch reference for each."""
